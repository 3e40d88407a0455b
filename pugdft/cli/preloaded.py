"""What a warm start has imported: all modules of a run, without a tensor, a device or a thread of torch."""

from pugdft.machine import share_cores

share_cores()  # read by torch's threads when it is imported

import pugdft.cli.main  # noqa: E402
import pugdft.training.run  # noqa: E402
import pugdft.training.tracking  # noqa: E402, F401
