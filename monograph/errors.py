"""Every error that monograph raises on purpose.

::

    MonographError                exit code 1
    ├── InputError                exit code 2: what the user gave is wrong, and the message says how to mend it
    │   ├── ConfigError           a pipeline file or an option
    │   ├── SourceError           a model that is missing, damaged or unsafe to read
    │   ├── ContractError         a contract that cannot be read, or that two parties cannot agree on
    │   ├── DataError             a dataset that is missing, empty, unreadable or does not fit the model
    │   ├── FusionError           members that cannot be fused
    │   │   └── HorizontalError   members that cannot be batched, because they are not of one architecture
    │   └── MissingPackageError   an optional package that this needs and that is not installed
    ├── ExportError               PyTorch or ONNX could not express the model
    ├── ParityError               a proof failed: the new model does not compute what the old one did
    ├── BundleError               a bundle that is not what its manifest says
    ├── BlockedError              the gate's verdict does not let a model ship; exit code 1 or 3, the verdict's
    ├── PlacementError            a target was asked for, and something else ran the model
    └── WorkerError               a process started to measure something died or failed
"""


class MonographError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(MonographError):
    """What the user gave is wrong: the message says what was got, what was expected and how to mend it."""

    exit_code = 2


class ConfigError(InputError):
    """A pipeline file or an option that cannot be used."""


class SourceError(InputError):
    """A model that is missing, damaged or unsafe to read."""


class ContractError(InputError):
    """A contract that cannot be read, or that two parties cannot agree on."""


class DataError(InputError):
    """A dataset that is missing, empty, unreadable or does not fit the model."""


class FusionError(InputError):
    """Members that cannot be fused."""


class HorizontalError(FusionError):
    """Members that cannot be batched, because they are not of one architecture."""


class MissingPackageError(InputError):
    """An optional package that this needs and that is not installed."""


class ExportError(MonographError):
    """PyTorch or ONNX could not express the model."""


class ParityError(MonographError):
    """A proof failed: the new model does not compute what the old one did."""


class BundleError(MonographError):
    """A bundle that is not what its manifest says: a file was changed, added or left out."""


class BlockedError(MonographError):
    """The gate's verdict does not let a model ship; the exit code is the verdict's: 1 fail, 3 inconclusive."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PlacementError(MonographError):
    """A target was asked for, and something else ran the model or a part of it that counts."""


class WorkerError(MonographError):
    """A process started to measure something died or failed."""
