"""What compose.yaml and the guide start in containers is in our command line and in the image."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pugdft.bench.executors import parse_executor
from pugdft.cli.help import command_line, commands
from pugdft.cli.main import application

ROOT = Path(__file__).parents[1]
COMMANDS = dict(commands(command_line(application())))
IMAGE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]


def instruction(name: str) -> str:
    """The arguments of the only instruction of this name in the Dockerfile."""
    (found,) = re.findall(rf"^{name} (.*)$", IMAGE, re.MULTILINE)
    return str(found)


FOLDERS = re.findall(r'"(/\w+)"', instruction("VOLUME"))


def read_command(words: list[str]) -> dict[str, Any]:
    """The values of ``pugdft WORDS``, of which nothing is run."""
    name = " ".join(words[:2])
    return COMMANDS[name].make_context(name, words[2:]).params


def words_of(name: str, arguments: list[str] | None = None) -> list[str]:
    """What a service starts, with the arguments that ``docker compose run`` is given, if any."""
    service = SERVICES[name]
    return service.get("entrypoint", ["pugdft"]) + (arguments or service["command"])


def shown_lines(start: str) -> list[list[str]]:
    """The words of the commands that begin so, in the guide and in the comments of compose.yaml."""
    lines = re.findall(rf"^(?:#   )?({start} .*)$", GUIDE + COMPOSE, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", [name for name in SERVICES if SERVICES[name]["command"] != ["--help"]])
def test_a_service_starts_a_command_that_we_have(name: str) -> None:
    values = read_command(words_of(name))
    if values.get("executor"):
        assert parse_executor(values["executor"]).workers == 0, "only the workers run cells"
    if values.get("join"):
        assert values["join"] == Path(re.search("^WORKDIR (.*)", IMAGE, re.MULTILINE)[1]) / "runs"  # type: ignore[index]


def test_a_run_has_as_many_gpus_as_processes() -> None:
    (device,) = SERVICES["finetune"]["deploy"]["resources"]["reservations"]["devices"]
    assert read_command(words_of("finetune"))["num_processes"] == device["count"] == 2


def test_every_command_that_is_shown_parses() -> None:
    compose = shown_lines("docker compose run")
    for words in compose:
        name = next(word for word in words[3:] if not word.startswith("-"))
        read_command(words_of(name, words[words.index(name) + 1 :]))
    plain = shown_lines("docker run")
    for words in plain:
        image = next(number for number, word in enumerate(words) if re.fullmatch(r"pugdft(:\w+)?", word))
        read_command(["pugdft", *words[image + 1 :]])
    scaled = [words[-1].partition("=")[0] for words in shown_lines("docker compose up --scale")]
    assert len(compose) >= 4
    assert len(plain) >= 2
    assert set(scaled) == {"worker"} == {name for name in SERVICES if "profiles" not in SERVICES[name]}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_only_where_the_image_has_its_folders(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    targets = [volume.rpartition(":")[2] for volume in service["volumes"]]
    assert sorted(targets) == sorted(FOLDERS)
    assert instruction("WORKDIR") in targets
    caches = re.findall(r"\b(?:HOME|\w+_CACHE|\w+_HOME|\w+_DIR|\w+CONFIGDIR)=(\S+)", instruction("ENV"))
    assert len(caches) >= 7
    assert all(Path(cache).is_relative_to("/cache") for cache in caches)
    assert service["tmpfs"] == ["/tmp"]
    assert service["user"].endswith(f":-{instruction('USER')}}}")


def test_the_services_share_image_and_folders() -> None:
    for key in ("image", "build", "user", "volumes", "init"):
        assert len({str(service[key]) for service in SERVICES.values()}) == 1, key
    assert set(SERVICES["worker"]["build"]["args"]) == set(re.findall(r"^ARG (\w+)=$", IMAGE, re.MULTILINE))


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file or a folder into the build: the last line that fits counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = [path, *(str(each) for each in Path(path).parents), Path(path).name]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(part, pattern) for part in parts):
            sent = line.startswith("!")
    return sent


def test_the_build_is_sent_what_it_needs_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "constraints.txt", "hatch_build.py", "README.md"}
    needed |= {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    assert all(is_sent(each) for each in needed), needed
    # A change of these must not install anything again.
    for each in ("compose.yaml", "Dockerfile", "docs/guide.md", "tests/conftest.py", "runs/x/record.yaml"):
        assert not is_sent(each), each
    assert not is_sent("pugdft/__pycache__/paths.cpython-312.pyc")
