"""The files for KubeRay and Slurm in `docs/how_to/cluster.md`, and the page of `tools/scale_model.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how_to" / "cluster.md").read_text()
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}


def an_object(required: str, **fields: Any) -> dict[str, Any]:
    """A JSON schema that allows no other fields."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": fields,
        "additionalProperties": False,
    }


# The fields of ray.io/v1 (https://docs.ray.io/en/latest/cluster/kubernetes/) and of a pod that the example uses.
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY, "required": ["cpu", "memory"]}
FROM = an_object("secretKeyRef", secretKeyRef=an_object("name key", name=TEXT, key=TEXT))
ENV = {"type": "array", "items": an_object("name", name=TEXT, value=TEXT, valueFrom=FROM)}
RESOURCES = an_object("requests limits", requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = an_object("name image resources", name=TEXT, image=TEXT, env=ENV, resources=RESOURCES)
POD = an_object(
    "spec", spec=an_object("containers", containers={"type": "array", "minItems": 1, "items": CONTAINER})
)
START = {"type": "object", "additionalProperties": TEXT}
COUNTS = {"replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
WORKERS = an_object(
    "groupName replicas rayStartParams template",
    groupName=TEXT,
    rayStartParams=START,
    template=POD,
    **COUNTS,
)
CLUSTER = an_object(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    headGroupSpec=an_object("rayStartParams template", rayStartParams=START, template=POD),
    workerGroupSpecs={"type": "array", "minItems": 1, "items": WORKERS},
)
RAY_JOB = an_object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=an_object("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=an_object(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        shutdownAfterJobFinishes={"type": "boolean"},
        rayClusterSpec=CLUSTER,
    ),
)
# of `man sbatch`: those that a job of several nodes may want
SBATCH = {
    "account",
    "array",
    "constraint",
    "cpus-per-task",
    "error",
    "exclusive",
    "gpus-per-node",
    "gres",
    "job-name",
    "mem",
    "nodes",
    "ntasks-per-node",
    "open-mode",
    "output",
    "partition",
    "qos",
    "requeue",
    "reservation",
    "signal",
    "time",
}


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_ray_job_has_the_fields_of_kuberay() -> None:
    job = yaml.safe_load(block("yaml"))
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]  # tokens stay on
        assert group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0)


def test_the_schema_finds_a_misspelt_field() -> None:
    job = yaml.safe_load(block("yaml").replace("groupName: gpu", "groupname: gpu"))
    with pytest.raises(jsonschema.ValidationError, match="groupname"):
        jsonschema.Draft202012Validator(RAY_JOB).validate(job)


def test_the_slurm_script_is_bash_with_options_of_sbatch(tmp_path: Path) -> None:
    script = block("bash")
    (tmp_path / "job.sh").write_text(script)
    done = subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(asked)] == asked  # sbatch reads none after the first command
    options = [re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line) for line in asked]
    assert {one[1] if one else "" for one in options} <= SBATCH
    assert "RAY_AUTH_MODE=token" in script


def model(*options: str) -> str:
    command = [sys.executable, str(ROOT / "tools" / "scale_model.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_the_page_on_scale_is_what_its_command_makes() -> None:
    assert model().rstrip() == (ROOT / "docs" / "scale.md").read_text().rstrip()


@pytest.mark.slow
def test_costs_follow_their_assumptions() -> None:
    def total(text: str) -> list[float]:
        line = next(line for line in text.splitlines() if line.startswith("| all"))
        return [float(cell.replace(",", "")) for cell in line.split("|")[3:-1]]

    full, half = total(model()), total(model("--mfu", "0.175", "--gbit-s", "20"))
    assert half[4] == pytest.approx(2 * full[4], rel=1e-3)
    assert half[1] == pytest.approx(full[1] / 2, rel=2e-2)
    assert half[:1] + half[2:4] == full[:1] + full[2:4]


@pytest.mark.slow
def test_flops_by_formula_are_those_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the image encoder, by transformers' ViT-B/16 on the meta device."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import torch
    from scale_model import vit_gflop  # type: ignore[import-not-found, unused-ignore]
    from transformers import ViTConfig, ViTModel

    from vlpipe.models.flops import count

    with torch.device("meta"):
        net = ViTModel(ViTConfig(attn_implementation="eager"), add_pooling_layer=False)
        counted = count(lambda: net(torch.empty(1, 3, 224, 224)))
    assert vit_gflop(224) == pytest.approx(counted / 1e9, rel=1e-3)
