# Holds the SDK to what the snapshots page promises, in real VMs: those of the server that THAW_TEST_URL and
# THAW_TEST_API_KEY name.
from __future__ import annotations

import unittest
from unittest import IsolatedAsyncioTestCase

from thaw import AsyncSandbox, AsyncSnapshots, ConflictError, NotFoundError

from .test_wire import HAS_VMS, NO_SERVER, SERVER

COUNT = 'nohup sh -c "n=0; while :; do n=\\$((n+1)); echo \\$n > counter; sleep 0.5; done" > /dev/null 2>&1 &'


@unittest.skipUnless(all(SERVER.values()) and HAS_VMS, NO_SERVER)
class SnapshotsOfVms(IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.sbx = await AsyncSandbox.create(**SERVER)

    async def asyncTearDown(self) -> None:
        await self.sbx.kill()

    async def counter(self, sandbox: AsyncSandbox, above: int = 0) -> int:
        """Waits in the sandbox until it has counted further than ``above``."""
        is_above = 'n=$(cat counter 2>/dev/null); test "${n:-0}" -gt ' + str(above)
        result = await sandbox.commands.run(f"until {is_above}; do sleep 0.1; done; echo $n")
        return int(result.stdout)

    async def test_goes_on_in_new_sandboxes_after_the_source_was_killed(self) -> None:
        await self.sbx.commands.run(COUNT)
        await self.sbx.files.write("unsynced", "kept")
        counted = await self.counter(self.sbx)
        snapshot = await self.sbx.create_snapshot("counting")
        await self.counter(self.sbx, above=counted)
        self.assertEqual(await self.sbx.list_snapshots(), [snapshot])
        await self.sbx.kill()
        snapshots = AsyncSnapshots(**SERVER)
        self.addCleanup(snapshots._connection.http.close)
        details = await snapshots.get(snapshot.snapshot_id)
        self.assertEqual((details.sandbox_id, details.names), (self.sbx.sandbox_id, snapshot.names))
        self.assertGreater(details.pause_ms["total"], 0)
        first = await AsyncSandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)
        second = await AsyncSandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)
        self.assertEqual(len({self.sbx.sandbox_id, first.sandbox_id, second.sandbox_id}), 3)
        for clone in (first, second):
            self.assertEqual(await clone.files.read("unsynced"), "kept")
            await self.counter(clone, above=await self.counter(clone, above=counted))
        await first.files.write("unsynced", "mine")
        self.assertEqual(await second.files.read("unsynced"), "kept")
        for clone in (first, second):
            self.assertTrue(await clone.kill())
        self.assertTrue(await snapshots.delete(snapshot.snapshot_id))
        self.assertFalse(await snapshots.delete(snapshot.snapshot_id))
        with self.assertRaises(NotFoundError):
            await AsyncSandbox.create(snapshot_id=snapshot.snapshot_id, **SERVER)

    async def test_pauses_and_resumes(self) -> None:
        await self.sbx.commands.run(COUNT)
        counted = await self.counter(self.sbx)
        sleeping = await self.sbx.commands.run("sleep 100", background=True)
        self.assertTrue(await self.sbx.pause())
        with self.assertRaises(NotFoundError):
            await sleeping.wait()
        self.assertFalse(await self.sbx.is_running())
        self.assertFalse(await self.sbx.pause())
        info = await self.sbx.get_info()
        self.assertEqual(info.state, "paused")
        with self.assertRaises(ConflictError):
            await self.sbx.create_snapshot()
        await self.sbx.resume(timeout=120)
        self.assertTrue(await self.sbx.is_running())
        await self.counter(self.sbx, above=counted)
        running = [process.pid for process in await self.sbx.commands.list()]
        self.assertIn(sleeping.pid, running)

    async def test_forks(self) -> None:
        await self.sbx.files.write("kept", "yes")
        forks = await self.sbx.fork(2)
        self.assertEqual(len(forks), 2)
        for fork in forks:
            self.assertEqual(await fork.files.read("kept"), "yes")
            await fork.kill()
        self.assertTrue(await self.sbx.is_running())

    async def test_measures_what_it_uses(self) -> None:
        samples = await self.sbx.get_metrics()
        self.assertGreater(samples[-1].mem_total_bytes, 100_000_000)
        self.assertGreater(samples[-1].cpu_count, 0)
