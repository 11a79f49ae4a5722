"""Where a run lives when the user does not say."""

import os
from pathlib import Path


def runs_folder() -> Path:
    """KDRAY_RUNS if set; in a Ray job the home folder, since the job's own folder is deleted after it; else ./runs."""
    if os.environ.get("KDRAY_RUNS"):
        return Path(os.environ["KDRAY_RUNS"])
    if "working_dir_files" in Path.cwd().parts:
        return Path.home() / "kdray-runs"
    return Path("runs")
