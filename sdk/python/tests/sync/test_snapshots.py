# Made from ../aio/test_snapshots.py by make_sync.py: change that.
# Holds the SDK to what the snapshots page promises, in real VMs: those of the server that THAW_TEST_URL and
# THAW_TEST_API_KEY name.
from __future__ import annotations

import unittest
from unittest import TestCase

from thaw import Sandbox, Snapshots, ConflictError, NotFoundError

from .test_wire import HAS_VMS, NO_SERVER, SERVER

COUNT = 'nohup sh -c "n=0; while :; do n=\\$((n+1)); echo \\$n > counter; sleep 0.5; done" > /dev/null 2>&1 &'


@unittest.skipUnless(all(SERVER.values()) and HAS_VMS, NO_SERVER)
class SnapshotsOfVms(TestCase):
    def setUp(self) -> None:
        self.sbx = Sandbox.create(**SERVER)

    def tearDown(self) -> None:
        self.sbx.kill()

    def counter(self, sandbox: Sandbox, above: int = 0) -> int:
        """Waits in the sandbox until it has counted further than ``above``."""
        is_above = 'n=$(cat counter 2>/dev/null); test "${n:-0}" -gt ' + str(above)
        result = sandbox.commands.run(f"until {is_above}; do sleep 0.1; done; echo $n")
        return int(result.stdout)

    def test_goes_on_in_new_sandboxes_after_the_source_was_killed(self) -> None:
        self.sbx.commands.run(COUNT)
        self.sbx.files.write("unsynced", "kept")
        counted = self.counter(self.sbx)
        snapshot = self.sbx.create_snapshot("counting")
        self.counter(self.sbx, above=counted)
        self.assertEqual(self.sbx.list_snapshots(), [snapshot])
        self.sbx.kill()
        snapshots = Snapshots(**SERVER)
        self.addCleanup(snapshots._connection.http.close)
        details = snapshots.get(snapshot.snapshot_id)
        self.assertEqual((details.sandbox_id, details.names), (self.sbx.sandbox_id, snapshot.names))
        self.assertGreater(details.pause_ms["total"], 0)
        first = Sandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)
        second = Sandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)
        self.assertEqual(len({self.sbx.sandbox_id, first.sandbox_id, second.sandbox_id}), 3)
        for clone in (first, second):
            self.assertEqual(clone.files.read("unsynced"), "kept")
            self.counter(clone, above=self.counter(clone, above=counted))
        first.files.write("unsynced", "mine")
        self.assertEqual(second.files.read("unsynced"), "kept")
        for clone in (first, second):
            self.assertTrue(clone.kill())
        self.assertTrue(snapshots.delete(snapshot.snapshot_id))
        self.assertFalse(snapshots.delete(snapshot.snapshot_id))
        with self.assertRaises(NotFoundError):
            Sandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)

    def test_pauses_and_resumes(self) -> None:
        self.sbx.commands.run(COUNT)
        counted = self.counter(self.sbx)
        sleeping = self.sbx.commands.run("sleep 100", background=True)
        self.assertTrue(self.sbx.pause())
        with self.assertRaises(NotFoundError):
            sleeping.wait()
        self.assertFalse(self.sbx.is_running())
        self.assertFalse(self.sbx.pause())
        info = self.sbx.get_info()
        self.assertEqual(info.state, "paused")
        with self.assertRaises(ConflictError):
            self.sbx.create_snapshot()
        self.sbx.resume(timeout=120)
        self.assertTrue(self.sbx.is_running())
        self.counter(self.sbx, above=counted)
        running = [process.pid for process in self.sbx.commands.list()]
        self.assertIn(sleeping.pid, running)

    def test_forks(self) -> None:
        self.sbx.files.write("kept", "yes")
        forks = self.sbx.fork(2)
        self.assertEqual(len(forks), 2)
        for fork in forks:
            self.assertEqual(fork.files.read("kept"), "yes")
            fork.kill()
        self.assertTrue(self.sbx.is_running())

    def test_measures_what_it_uses(self) -> None:
        samples = self.sbx.get_metrics()
        self.assertGreater(samples[-1].mem_total_bytes, 100_000_000)
        self.assertGreater(samples[-1].cpu_count, 0)
