"""What happens by the clock: rescans, masters, the end of the night, backups, housekeeping.

The jobs are triggers and cost nothing; the work is done by the worker and the intake.
"""

import datetime as dt
from collections.abc import Callable
from typing import TypeAlias

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from daemon.config import ServiceConfig
from daemon.inbox import Request
from daemon.log import StatusLog

MASTERS_S = 30.0
HOUSEKEEPING_S = 6 * 3600.0
Clock: TypeAlias = BackgroundScheduler
"""What `schedule` starts; `shutdown(wait=False)` ends it."""

BACKUP_AFTER_S = 600
"""The backup follows the end of the night after so long (s)."""


def schedule(
    config: ServiceConfig,
    *,
    rescan: Callable[[], None],
    request: Callable[[Request], None],
    log: StatusLog,
) -> Clock:
    """Start the clock; `shutdown(wait=False)` ends it.

    APScheduler's defaults drop a job that is a second late: here a late job still runs, once.
    """
    scheduler = BackgroundScheduler(
        timezone=dt.UTC,
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    local = dt.datetime.now().astimezone().tzinfo
    end = config.end_of_night
    later = (
        dt.datetime.combine(dt.date(2000, 1, 1), end) + dt.timedelta(seconds=BACKUP_AFTER_S)
    ).time()
    # Each trigger gets its zone: where TZ is a rule and no name (CET-1CEST), none can be guessed.
    scheduler.add_job(
        rescan, IntervalTrigger(seconds=config.rescan_s, timezone=dt.UTC), id="rescan"
    )
    for name, trigger in (
        (Request.MASTERS, IntervalTrigger(seconds=MASTERS_S, timezone=dt.UTC)),
        (Request.HOUSEKEEPING, IntervalTrigger(seconds=HOUSEKEEPING_S, timezone=dt.UTC)),
        (Request.END_OF_NIGHT, CronTrigger(hour=end.hour, minute=end.minute, timezone=local)),
        (Request.BACKUP, CronTrigger(hour=later.hour, minute=later.minute, timezone=local)),
    ):
        scheduler.add_job(request, trigger, args=[name], id=str(name))

    def tell(event: JobExecutionEvent) -> None:
        problem = getattr(event, "exception", None) or "it was missed"
        log.error("JOB", f"{event.job_id}: {problem}")

    scheduler.add_listener(tell, EVENT_JOB_ERROR | EVENT_JOB_MISSED)
    scheduler.start()
    return scheduler
