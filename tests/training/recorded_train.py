"""train.py, but every rank writes down which samples it has trained on, and dies where it is told to.

python -m tests.training.recorded_train FOLDER KILL_STEP [overrides]      KILL_STEP 0: never
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from csm.data.datamodule import CSMDataModule
from csm.data.packing import StepBatch
from csm.training.build import train
from tests.conftest import compose_train


class RecordedData(CSMDataModule):
    folder: Path
    kill_step: int

    def consumed(self, batch: StepBatch) -> None:
        super().consumed(batch)
        step = batch.cursor["step"]
        with (self.folder / f"rank-{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "keys": batch.keys}) + "\n")
        if step == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    RecordedData.folder, RecordedData.kill_step = Path(sys.argv[1]), int(sys.argv[2])
    sys.modules["csm.training.build"].CSMDataModule = RecordedData
    train(compose_train(sys.argv[3:]))
