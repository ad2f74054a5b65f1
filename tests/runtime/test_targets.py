import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from monograph.errors import ConfigError
from monograph.runtime.job import Contender, Job, Settings, run_in_process
from monograph.runtime.results import Evidence
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import TARGETS, Target, find_target
from monograph.runtime.targets.xnnpack import give_threads_to_xnnpack


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_found_by_its_own_name(name: str):
    target = find_target(name)
    assert isinstance(target, Target)
    assert target.name == name
    assert target.evidence in Evidence


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_describes_itself_in_one_line(name: str):
    description = find_target(name).describe()
    assert description.strip()
    assert "\n" not in description


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_available_has_its_provider_unless_it_is_predicted(name: str):
    target = find_target(name)
    if target.run is run_in_process and target.is_available():
        plugin = target.session.plugin
        assert target.provider in ort.get_available_providers() if plugin is None else importlib.util.find_spec(plugin)


def test_the_cpu_is_always_there_and_figures_on_it_are_executed():
    target = find_target("cpu")
    assert target.is_available()
    assert target.provider == "CPUExecutionProvider"
    assert target.evidence is Evidence.EXECUTED
    assert f"{usable_cores()} of " in target.describe()
    assert f"onnxruntime {ort.__version__}" in target.describe()


@pytest.mark.parametrize("name", ["", "CPU", "gpu9", "cpu "])
def test_another_target_names_those_that_there_are(name: str):
    with pytest.raises(ConfigError, match=rf"unknown target '{name}': choose from cpu"):
        find_target(name)


def test_a_target_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_target("cpu").name = "other"


@pytest.mark.parametrize("name", ["coreml", "nnapi", "xnnpack"])
def test_a_provider_of_phones_is_predicted_where_it_is_not_here(name: str):
    target = find_target(name)
    is_here = target.provider in ort.get_available_providers()
    assert target.is_available()
    assert target.evidence is (Evidence.EXECUTED if is_here else Evidence.PREDICTED)
    assert ("predicted" in target.describe()) != is_here
    assert target.session.provider == target.provider


def test_xnnpack_has_the_threads_and_onnx_runtime_has_one(
    classifier: Callable[..., Path], contender: Callable[[Path], Contender]
):
    job = Job(contender(classifier()), None, Settings(threads=3, spinning=True))
    given = give_threads_to_xnnpack(job)
    assert (given.settings.threads, given.settings.spinning) == (1, False)
    assert given.contender.loader_arguments["spec"]["options"] == {"intra_op_num_threads": "3"}
    assert given.contender.loader_arguments["path"] == job.contender.loader_arguments["path"]
