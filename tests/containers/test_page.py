"""The page that people see and press, in a real browser: runs, a failed shard and its retry, the form of a repair, the nightly schedule.

MINIPLM_PICTURES names the folder that gets the pictures (docs/img for those of the docs).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.browser import CHROMIUM, Page, open_browser
from tests.containers.compose_fleet import ComposeFleet
from tests.containers.runs import PATIENCE, make_config

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")


@pytest.fixture(scope="module")
def page(fleet: ComposeFleet, finished: str) -> Iterator[Page]:
    """A browser that has given the password, opened when there is something to be seen: a page asks the server all the time."""
    with open_browser() as page:
        page.open(f"http://127.0.0.1:{fleet.port}/login")
        page.press("admin:pass")
        page.write(f"miniplm:{fleet.secrets['MINIPLM_API_AUTH']}")
        page.press("Login")
        page.wait_for("Work Pools", "Dashboard")
        yield page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("MINIPLM_PICTURES") or tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def finished(fleet: ComposeFleet) -> str:
    """A run that is done: of tests that may be asked for alone."""
    execution = {"fan_out": "work-pool", "shards_per_batch": 4}
    run_id = fleet.submit("run-miniplm", config=make_config("page", 88, execution=execution))
    assert fleet.wait(run_id, PATIENCE)["state"]["type"] == "COMPLETED"
    return run_id


def open_deployment(page: Page, fleet: ComposeFleet, name: str, *, below: str = "") -> None:
    found = fleet.call("GET", f"/deployments/name/{name}/{name}")
    page.open(f"http://127.0.0.1:{fleet.port}/deployments/deployment/{found['id']}{below}")


def test_a_failed_shard_is_named_and_retry_on_its_page_repairs_it(
    page: Page, fleet: ComposeFleet, finished: str, pictures: Path
) -> None:
    """The repair is asked for by its form, fails as the shard is damaged, and is retried by its button when that is cured."""
    (shard,) = fleet.bucket.glob("miniplm/page/corpora/*/candidate/shard-00003.parquet")
    whole = fleet.bucket.cat_file(shard)
    fleet.bucket.pipe_file(shard, whole[:-100])
    fleet.bucket.rm(fleet.bucket.glob("miniplm/page/scores/*/*/shard-00003.*"))
    open_deployment(page, fleet, "rescore-shards", below="/run")
    page.wait_for("whose scores are repaired", "All failed", "These shards")
    for field, value in (("storage", "s3://miniplm/page"), ("run", "page")):
        page.fill(field, value)
    page.picture(pictures / "rescore-form.png")
    page.press("Submit")
    fleet.wait_until(lambda: fleet.list_runs("rescore-shards"), 60)
    page.leave()
    (repair,) = fleet.list_runs("rescore-shards")
    assert repair["parameters"] | {"storage": "s3://miniplm/page", "run": "page"} == repair["parameters"]
    assert fleet.wait(repair["id"], PATIENCE)["state"]["type"] == "FAILED"
    address = f"http://127.0.0.1:{fleet.port}/runs/flow-run/{repair['id']}"
    page.open(address)
    page.wait_for("Failed", "shard-00003: CorpusError", "Retry")
    page.picture(pictures / "failed-shard.png")
    fleet.bucket.pipe_file(shard, whole)
    page.press("Retry")
    page.wait_for("This will retry flow run")
    page.press_last("Retry")
    fleet.wait_until(lambda: fleet.read(repair["id"])["state"]["type"] != "FAILED", 30)
    page.leave()
    fleet.wait_until(lambda: fleet.read(repair["id"])["state"]["type"] == "COMPLETED", PATIENCE)
    page.open(address)
    page.wait_for("Completed")
    assert len(fleet.list_scored("page")) == 8


def test_the_page_of_runs_lists_a_run_with_all_that_it_started(
    page: Page, fleet: ComposeFleet, finished: str, pictures: Path
) -> None:
    page.open(f"http://127.0.0.1:{fleet.port}/runs/flow-run/{finished}")
    page.wait_for("run page", "Completed", "Artifacts", "miniplm-cpu", "Beginning flow run")
    page.size(1200, 1200)
    page.open(f"http://127.0.0.1:{fleet.port}/runs")
    page.wait_for("Flow runs", "run:page", "process:" + finished, "score-shards", "miniplm-gpu")
    page.picture(pictures / "runs.png")
    page.size(1200, 900)


def test_the_nightly_schedule_is_turned_on_by_its_switch(page: Page, fleet: ComposeFleet, pictures: Path) -> None:
    def is_active() -> bool:
        return bool(fleet.call("GET", "/deployments/name/run-miniplm/run-miniplm")["schedules"][0]["active"])

    assert not is_active()
    open_deployment(page, fleet, "run-miniplm")
    page.wait_for("Schedules", "02:00 AM")
    page.press_switch()
    fleet.wait_until(is_active, 30)
    page.picture(pictures / "schedule.png")
    page.press_switch()
    fleet.wait_until(lambda: not is_active(), 30)
