# Holds the blocking half of the SDK to the asyncio half it is made from.
import subprocess
import sys
import unittest
from pathlib import Path


class MakeSync(unittest.TestCase):
    def test_is_up_to_date(self) -> None:
        script = Path(__file__).parent.parent / "make_sync.py"
        checked = subprocess.run(
            [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(checked.returncode, 0, checked.stderr)
