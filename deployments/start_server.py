"""`prefect server start` for a fleet: after an outage of the server its healthy runs are not taken for lost ones.

An automation that waits for silence (automations/stale-run.yaml) keeps in the database until when it waits. A server that was
away for longer finds all those times passed, and marks every run of the fleet Crashed before one can beat again. So the waits
that are open begin anew at the start: a healthy run beats within them, and one that died meanwhile is found at their end.
Task runs are written to the database in batches (`DEFAULTS`), unless the environment says otherwise.

    python deployments/start_server.py --host 0.0.0.0 --port 4200        arguments are those of `prefect server start`
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from datetime import UTC, datetime

# Task runs are written down one by one else, three times each: a tenth of what a busy server does. So they are a second late in the UI.
DEFAULTS = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
if __name__ == "__main__":  # Prefect reads them when it is imported
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)

    gc.disable()  # what is imported stays: to look through it again and again takes a quarter of the start

import sqlalchemy as sa  # noqa: E402
from prefect.server.database import provide_database_interface  # noqa: E402


async def renew_waits() -> int:
    """Moves each open wait to now, at its whole length; gives their number."""
    db = provide_database_interface()
    await db.create_db()  # what the server itself does first
    now = datetime.now(UTC)
    async with db.session_context(begin_transaction=True) as session:
        waits = (await session.execute(sa.select(db.AutomationBucket))).scalars().all()
        for wait in waits:
            wait.start, wait.end = now, now + (wait.end - wait.start)
    engine = await db.engine()
    await engine.dispose()
    return len(waits)


def main() -> None:
    print(f"start_server: {asyncio.run(renew_waits())} waits for a sign of life begin anew", flush=True)
    # In this process, which has imported it: that takes a core five seconds, at each start.
    from prefect.cli import app

    gc.collect()
    gc.freeze()
    gc.enable()
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
