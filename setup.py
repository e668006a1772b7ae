"""Ships the ledger inside the wheel, so that `cambrian ledger` works without a checkout."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLedger(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "cambrian" / "_ledger"
            folder.mkdir(parents=True, exist_ok=True)
            for record in sorted(Path("ledger").glob("*.json")):
                self.copy_file(str(record), str(folder / record.name))


setup(cmdclass={"build_py": BuildWithLedger})
