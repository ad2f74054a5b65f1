"""The child process: runs one named function of monograph on JSON arguments and writes its JSON result to a file.

Started by :func:`monograph.runtime.process.call_in_fresh_process`; it imports nothing that the function does not need,
so that nothing else is alive while the function measures.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from monograph.errors import MonographError


def main() -> int:
    """Read ``{"function", "arguments", "result_path"}`` from standard input and do it."""
    request = json.load(sys.stdin)
    module_name, _, function_name = request["function"].partition(":")
    if module_name.split(".")[0] != "monograph":
        raise ValueError(f"a worker runs functions of monograph only, not {module_name!r}")
    try:
        answer = {"result": getattr(importlib.import_module(module_name), function_name)(**request["arguments"])}
    except MonographError as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    Path(request["result_path"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
