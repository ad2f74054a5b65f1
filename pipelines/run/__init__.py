"""The verb ``run``: a whole pipeline from a YAML file, each step done once."""

from monograph.pipelines.run.verb import RunResult, run_pipeline

__all__ = ["RunResult", "run_pipeline"]
