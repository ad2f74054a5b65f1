"""``python -m monograph`` and the command ``monograph``."""

from monograph.pipelines.cli import main

if __name__ == "__main__":
    main()
