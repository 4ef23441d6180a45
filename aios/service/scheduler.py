"""Jobs by the clock: APScheduler fires, its store is in memory and made anew from daemon.toml.

Nothing persistent is left to APScheduler (its store pickles); what a job found is in its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from aios.config import ScheduleSection
from aios.errors import ConfigError

MISSED_SECONDS_MAX = 6 * 3600     # after a night in suspend the job still runs in the morning, once


class Scheduler:
    """Runs named jobs at the times that [schedule] gives, in the running loop."""

    def __init__(self, jobs: dict[str, Callable[[], Coroutine[Any, Any, None]]]) -> None:
        self._jobs = jobs
        self._scheduler = AsyncIOScheduler()

    @staticmethod
    def check(schedule: ScheduleSection) -> None:
        """Raises ConfigError for a cron expression that cannot be read."""
        for name in schedule.__struct_fields__:
            _trigger(name, getattr(schedule, name))

    def start(self, schedule: ScheduleSection) -> None:
        """Begin to fire; call inside the running loop."""
        self._scheduler.start()
        self.reschedule(schedule)

    def reschedule(self, schedule: ScheduleSection) -> None:
        """Replace all times by those of a new configuration."""
        triggers = {name: _trigger(name, getattr(schedule, name)) for name in self._jobs}
        self._scheduler.remove_all_jobs()
        for name, trigger in triggers.items():
            if trigger is not None:
                self._scheduler.add_job(self._jobs[name], trigger, id=name, coalesce=True, max_instances=1,
                                        misfire_grace_time=MISSED_SECONDS_MAX)

    def next_run(self, name: str) -> str | None:
        """When a job fires next, in UTC (ISO 8601); None when never."""
        job = self._scheduler.get_job(name)
        at: datetime | None = job.next_run_time if job is not None else None
        return at.astimezone(UTC).isoformat(timespec="seconds") if at is not None else None

    def stop(self) -> None:
        """Fire nothing more."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)


def _trigger(name: str, expression: str) -> CronTrigger | None:
    if not expression.strip():
        return None
    try:
        return CronTrigger.from_crontab(expression)
    except ValueError as error:
        raise ConfigError(f"schedule.{name} = {expression!r}: {error}",
                          remedy="five fields: minute hour day month weekday; empty for never") from error
