"""The harness's own command line with one more model, `--model thoughtcache`.

The harness (0.4.13) has no entry points for models: a model is known once its class was registered in the same process.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Register the model, then hand over to `lm_eval`."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        sys.stderr.write("lm-evaluation-harness is not installed; pip install 'thoughtcache[harness]'\n")
        return 2
    from thoughtcache.harness.model import register

    register()
    cli_evaluate()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
