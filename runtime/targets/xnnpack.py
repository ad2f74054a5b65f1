"""XNNPACK, Google's kernels for mobile processors, by ONNX Runtime's XNNPACK provider."""

from __future__ import annotations

from dataclasses import replace

from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.results import Evidence
from monograph.runtime.session import usable_cores
from monograph.runtime.targets.predicted import predicted_target


def _run(job: Job) -> RawRun:
    return run_in_process(give_threads_to_xnnpack(job))


def give_threads_to_xnnpack(job: Job) -> Job:
    """Return the job with its threads in XNNPACK's own pool and one in ONNX Runtime's, which would take cores from it.

    https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html recommends it.
    """
    threads = job.settings.threads or usable_cores()
    arguments = job.contender.loader_arguments
    spec = arguments["spec"]
    options = {"intra_op_num_threads": str(threads), **spec["options"]}
    contender = replace(job.contender, loader_arguments={**arguments, "spec": {**spec, "options": options}})
    return replace(job, contender=contender, settings=replace(job.settings, threads=1, spinning=False))


_TARGET = predicted_target(
    "xnnpack",
    "XNNPACK's kernels for mobile processors",
    "XnnpackExecutionProvider",
    "on Android (onnxruntime-android from Maven), on iOS, and in a build of your own with --use_xnnpack",
)
XNNPACK = replace(_TARGET, run=_run) if _TARGET.evidence is Evidence.EXECUTED else _TARGET
