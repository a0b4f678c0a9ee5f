"""deployments/start_server.py: the waits that a server left open begin anew, at their own length."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.command_line import environment
from tests.conftest import ROOT
from tests.prefect_server import give_tables

# In a process of its own, since Prefect has one database a process. Two waits, one long over and one open.
PROGRAM = """
import asyncio, json, sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4
import sqlalchemy as sa
from prefect.server.database import provide_database_interface
sys.path.insert(0, "deployments")
from start_server import renew_waits

async def read(db):
    async with db.session_context() as session:
        return {wait.bucketing_key[0]: wait for wait in (await session.execute(sa.select(db.AutomationBucket))).scalars()}

async def main():
    db = provide_database_interface()
    first = await renew_waits()
    now = datetime.now(UTC)
    starts = {"over": now - timedelta(hours=9), "open": now - timedelta(seconds=30)}
    async with db.session_context(begin_transaction=True) as session:
        automation = db.Automation(name="stale", trigger={"type": "event", "posture": "Proactive", "within": 300}, actions=[], enabled=True)
        session.add(automation)
        await session.flush()
        for key, start in starts.items():
            session.add(db.AutomationBucket(automation_id=automation.id, trigger_id=uuid4(), bucketing_key=[key],
                        start=start, end=start + timedelta(seconds=300), count=0))
    counts = [first, await renew_waits(), await renew_waits()]
    waits = await read(db)
    facts = {key: [(wait.start - now).total_seconds() , (wait.end - wait.start).total_seconds()] for key, wait in waits.items()}
    print(json.dumps([counts, facts]))

asyncio.run(main())
"""


def test_waits_begin_anew_at_their_own_length_however_often_the_server_starts(tmp_path, prefect_server):
    """On a database that has its tables: to make them takes five seconds, and the fleet's tests start it on one without."""
    give_tables(prefect_server, tmp_path)
    url = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    prefect = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_DATABASE_CONNECTION_URL": url}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(prefect),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts, waits = json.loads(done.stdout.splitlines()[-1])
    assert counts == [0, 2, 2]
    assert set(waits) == {"over", "open"}
    for start, length in waits.values():
        assert 0 <= start < 60
        assert length == 300
