"""The files that start a cluster: what Ray, KubeRay and Kubernetes say of them, and the commands in them."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from kuberay import RAYJOB
from ray.autoscaler._private.util import prepare_config, validate_config

from kdray.cli.app import app
from kdray.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
LAUNCHED = ("cluster.yaml", "deploy/gcp.yaml", "deploy/on-premises.yaml")
CLOUDS = LAUNCHED[:2]
CLIENTS = {"aws": "boto3", "gcp": "google-api-python-client"}  # with which a head starts machines


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def prepared(name: str) -> dict:
    """A file as `ray up` reads it."""
    return prepare_config(read(name))


def commands_of(name: str) -> list[list[str]]:
    """Every `kdray run` in a file, also in its comments, as words after `kdray`."""
    text = re.sub(r"^# ?", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    if name == JOB:
        text = read(JOB)["spec"]["entrypoint"]
    text = text.replace("\\\n", " ")
    return [shlex.split(found.rstrip('"')) for found in re.findall(r"kdray (run [^\n]*)", text)]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_cluster_launcher_takes_the_file_and_would_refuse_a_slip(name):
    config = prepared(name)
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(read(name) | {"idle_timeout": 5}))


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_stays_and_machines_with_gpus_come_and_go(name):
    config = read(name)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["max_workers"] == 0 and not re.search("spot|preempt", str(head), re.IGNORECASE)
    ((_, scorers),) = types.items()
    assert scorers["min_workers"] == 0 and scorers["max_workers"] == config["max_workers"] > 0
    assert re.search("spot", str(scorers["node_config"]), re.IGNORECASE)
    if name == "cluster.yaml":  # Ray asks AWS what its machines have
        assert head["resources"] == scorers["resources"] == {}
        assert config["provider"]["cache_stopped_nodes"], "'ray down' must not delete the ledger"
    else:
        assert scorers["resources"]["GPU"] >= 1 and "GPU" not in head["resources"]
        assert head["node_config"]["disks"][0]["autoDelete"] is False, "'ray down' must not delete the ledger"
    assert CLIENTS[config["provider"]["type"]] in " ".join(config["head_setup_commands"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_run_kdray_from_where_it_is_copied_to_with_the_token(name):
    config = prepared(name)
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"] == {f"{home}/kdray": ".", f"{home}/.ray/auth_token": "~/.ray/auth_token"}
    setup = config["head_setup_commands"] + config["worker_setup_commands"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in setup + starts:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode == 0, command
    in_project = [command for command in setup if "pip install" in command]
    assert in_project and all(command.startswith(f"cd {home}/kdray && ") for command in in_project)
    assert (ROOT / "pyproject.toml").exists()  # which -e . needs
    version = re.search(r"--python (\S+)", " ".join(setup))[1]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"
    assert tuple(map(int, version.split("."))) >= (3, 11)
    assert all(f"{home}/kdray/.venv/bin/ray " in command for command in starts)
    starting = [command for command in starts if "ray start" in command]
    assert len(starting) == 2 and all("RAY_AUTH_MODE=token " in command for command in starting)
    assert "--head" in starting[0] and "--autoscaling-config=~/ray_bootstrap_config.yaml" in starting[0]
    assert "--address=$RAY_HEAD_IP:6379" in starting[1] and "--port=6379" in starting[0]
    assert {".venv", "runs"} <= set(config["rsync_exclude"]), "what the head has bought must not be replaced"


@pytest.mark.parametrize("name", [*LAUNCHED, "deploy/rayjob.yaml", "docs/clusters.md"])
def test_every_kdray_command_in_the_files_is_one_that_kdray_takes(name):
    commands = commands_of(name)
    assert commands
    kdray = typer.main.get_command(app)
    for words in commands:
        with kdray.make_context("kdray", list(words), resilient_parsing=True) as context:
            parsed = kdray.get_command(context, "run").make_context("run", words[1:], parent=context).params
        path = re.sub(r"^/home/ray/kdray/", "", str(parsed["config"]))
        config = load_config(ROOT / path, parsed["overrides"])
        assert parsed["out"], words
        if name.startswith("docs"):
            continue
        assert config.resources.scoring_gpus == 1, words
        assert config.resources.teacher_workers == 0, "a local teacher's file is on the head alone"
        if name in CLOUDS:
            assert config.resources.scoring_workers == read(name)["max_workers"]
            assert config.resources.patience_s >= 600


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_run_joins_the_cluster_with_the_token(name):
    # Without RAY_ADDRESS kdray would start a Ray of its own on the head, and the other machines would stay off.
    text = (ROOT / name).read_text()
    assert "RAY_AUTH_MODE=token RAY_ADDRESS=auto .venv/bin/kdray run" in text
    assert f"ray exec {name} " in text and f"ray up {name}" in text


# The job for KubeRay

JOB, VOLUME, IMAGE = "deploy/rayjob.yaml", "deploy/volume.yaml", "deploy/Dockerfile"


def pods(job: dict) -> dict[str, dict]:
    """The pod of each group, as Kubernetes gets it."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {
        name: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        for name, group in groups.items()
    }


def test_the_job_and_its_volume_are_what_kuberay_and_kubernetes_take():
    job = read(JOB)
    jsonschema.validate(job, RAYJOB)
    for manifest in (read(VOLUME), *pods(job).values()):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    slips = [
        job | {"spec": job["spec"] | {"backOffLimit": 0}},
        job | {"spec": job["spec"] | {"submitterConfig": {"backoffLimit": "0"}}},
        job | {"apiVersion": "ray.io/v1alpha1"},
    ]
    for slip in slips:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(slip, RAYJOB)


def test_the_job_is_run_once_and_its_cluster_ends():
    spec = read(JOB)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"  # in HTTPMode a head that was lost gets the job again
    assert spec["submitterConfig"]["backoffLimit"] == 0 and spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_what_is_paid_for_lies_on_a_volume_that_outlives_the_job():
    job, volume = read(JOB), read(VOLUME)
    head = pods(job)["head"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    (held,) = [volume for volume in head["volumes"] if volume["name"] == mount["name"]]
    assert held["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert len(list(yaml.safe_load_all((ROOT / JOB).read_text()))) == 1, "deleting the job must leave the volume"
    (words,) = commands_of(JOB)
    kept = dict(word.split("=") for word in words if "=" in word) | {"out": words[words.index("--out") + 1]}
    for key in ("out", "ledger.path", "teacher.weights"):
        assert kept[key].startswith(mount["mountPath"] + "/"), key


def test_pods_with_gpus_start_on_spot_nodes_when_they_are_asked_for():
    cluster = read(JOB)["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    (words,) = commands_of(JOB)
    assert cluster["enableInTreeAutoscaling"] is True
    assert workers["replicas"] == workers["minReplicas"] == 0
    assert f"resources.scoring_workers={workers['maxReplicas']}" in words
    spec = workers["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "spot" in str(spec["nodeSelector"]) and "spot" in str(spec["tolerations"])
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "spot" not in str(head) and "nvidia.com/gpu" not in str(head)
    assert head["containers"][0]["image"] == container["image"], "Ray refuses nodes with other versions"


def test_the_image_holds_what_the_job_names():
    lines = (ROOT / IMAGE).read_text().splitlines()
    base = next(line for line in lines if line.startswith("FROM "))
    assert f":{read(JOB)['spec']['rayClusterSpec']['rayVersion']}-py312-gpu" in base
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[2:-1]]
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    needed = {"kdray", "actors", "pyproject.toml", "setup.py", *named}  # without a folder that it names, pip refuses
    assert needed <= set(copied) and all((ROOT / name).exists() for name in copied)
    folder = next(line for line in lines if line.startswith("WORKDIR ")).split()[1]
    (words,) = commands_of(JOB)
    assert words[1].startswith(f"{folder}/examples/") and "examples" in copied


def test_the_image_has_what_every_pool_needs():
    text = (ROOT / IMAGE).read_text()
    extras = re.search(r"pip install .*'\.\[(.*)\]'", text)[1].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"fractals", "gl", "leaves"} <= set(extras) <= set(known)
    needed = re.search(r"apt-get install ((?:lib[\w-]+ ?)+)", (ROOT / "docs/choosing.md").read_text())[1].split()
    assert len(needed) == 3 and set(needed) <= set(text.split())
