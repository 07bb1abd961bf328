"""What is shipped: pipelines and manifests that parse, pins that fit, a wheel that is whole and works elsewhere."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vla_tune.config import load_config
from vla_tune.data.manifests import load_manifest
from vla_tune.resources import available

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", available("pipelines"))
def test_every_shipped_pipeline_parses_and_names_manifests_that_exist(name):
    config = load_config(name)
    assert config.name == name
    assert load_manifest(config.vqa.manifest).kind in ("vqa", "vqa-benchmark")
    if config.data.manifest:
        assert load_manifest(config.data.manifest).kind == "demonstrations"


@pytest.mark.parametrize("name", available("data_manifests"))
def test_every_shipped_manifest_parses(name):
    assert load_manifest(name).license


def test_the_demo_is_shipped():
    assert "demo" in available("pipelines")


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    strange = [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.!_-]+", line)]
    assert not strange, "requirements.txt holds NAME==VERSION and nothing else: no addresses, options or local builds"
    return dict(line.split("==") for line in lines)


def test_the_pins_satisfy_every_requirement_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
        *project["dependency-groups"]["dev"],
    ]
    found = pins()
    for requirement in map(Requirement, wanted):
        pin = found.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in requirements.txt; run `make requirements`"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} against {pin}; run `make requirements`"


@pytest.mark.parametrize("document", ["README.md", *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "docs").glob("*.md")))])
def test_links_inside_the_documents_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text())
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_whole_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"vla_tune/{kind}/{name}.yaml" for kind in ("pipelines", "data_manifests", "studies") for name in available(kind)}
    expected |= {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "vla_tune").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }
    assert {"vla_tune/reports/page.html", "vla_tune/assets/demo_vlm/config.json", "vla_tune/assets/demo_vlm/model.safetensors"} <= expected
    assert expected - names == set()
    assert {name for name in names if not name.startswith(("vla_tune/", "vla_tune-"))} == set()


def test_the_installed_wheel_finds_its_resources_outside_the_repository(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", sys.executable]
    subprocess.run([*install, "--target", target, wheel], check=True, capture_output=True)
    code = (
        "import vla_tune.resources as r, vla_tune.config as c\n"
        "print(r.resource('pipelines', 'demo.yaml'), r.demo_vlm() / 'config.json', c.load_config('demo').name, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    out = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, check=True, capture_output=True, text=True).stdout
    pipeline, vlm, name = out.splitlines()
    assert Path(pipeline) == target / "vla_tune" / "pipelines" / "demo.yaml"
    assert Path(vlm) == target / "vla_tune" / "assets" / "demo_vlm" / "config.json"
    assert Path(vlm).is_file()
    assert name == "demo"
