"""Whether the Hugging Face Hub can be reached, asked once and quickly."""

from __future__ import annotations

import functools
import os
import socket
import urllib.parse
import urllib.request


@functools.cache
def stay_offline_without_network() -> bool:
    """Tell the Hub's client to use its cache alone if the Hub's name does not resolve; True if so.

    Its client otherwise tries again for half a minute before it says that there is no network. Behind a
    proxy names need not resolve here, so nothing is concluded then.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if urllib.request.getproxies():
        return False
    host = urllib.parse.urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported or started later
        constants.HF_HUB_OFFLINE = True
        return True
    return False
