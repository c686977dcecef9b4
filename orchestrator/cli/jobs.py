"""`atelier jobs`."""

import json

import click

from orchestrator.cli.common import (
    connect_option,
    connected,
    json_option,
    percent,
    print_facts,
    print_json,
    print_table,
)
from orchestrator.cli.group import LazyGroup

STATUSES = ("pending", "processing", "completed", "failed", "cancelled")


@click.group(
    cls=LazyGroup,
    lazy={
        "list": ("orchestrator.cli.jobs:list_jobs", "List jobs, newest first."),
        "show": ("orchestrator.cli.jobs:show", "Show one job."),
        "watch": ("orchestrator.cli.jobs:watch", "Follow a job's events to its end."),
        "cancel": ("orchestrator.cli.jobs:cancel", "Cancel jobs."),
    },
)
def jobs() -> None:
    """List, show, watch and cancel jobs.

    Example: atelier jobs list --status processing
    """


@click.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs of this status.")
@click.option("--session", "session_id", metavar="ID", help="Only jobs of this session.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", metavar="JOB_ID", help="Go on after this last one of a page.")
@json_option
@connect_option
def list_jobs(
    status: str | None, session_id: str | None, limit: int, before: str | None, as_json: bool, connect: str | None
) -> None:
    """List jobs, newest first.

    Example: atelier jobs list --status failed --limit 10
    """
    with connected(connect) as client:
        found = client.jobs.list(status=status, session_id=session_id, limit=limit, before=before)
    if as_json:
        print_json(found)
        return
    rows = [
        (job.job_id, job.status, percent(job.progress), job.action, job.priority, job.worker_id, job.created_at)
        for job in found
    ]
    print_table(("JOB", "STATUS", "DONE", "ACTION", "PRIORITY", "WORKER", "CREATED"), rows, "No jobs.")


@click.command()
@click.argument("job_id")
@json_option
@connect_option
def show(job_id: str, as_json: bool, connect: str | None) -> None:
    """Show one job.

    Example: atelier jobs show 0197a2b4-5d7e-7c11-8a3f-0d6a1c9e4b52
    """
    with connected(connect) as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job)
        return
    facts = job.model_dump(mode="json", exclude={"error", "progress"})
    error = f"{job.error.get('code')}: {job.error.get('message')}" if job.error else None
    print_facts({**facts, "progress": percent(job.progress), "error": error})


@click.command()
@click.argument("job_id")
@click.option("--after", "after_seq", type=click.IntRange(0), default=0, help="Only events after this number.")
@json_option
@connect_option
def watch(job_id: str, after_seq: int, as_json: bool, connect: str | None) -> None:
    """Follow a job's events to its end: those kept, then new ones. Exit code 1 unless it completed.

    Example: atelier jobs watch 0197a2b4-5d7e-7c11-8a3f-0d6a1c9e4b52
    """
    status = None
    with connected(connect) as client:
        for event in client.jobs.events(job_id, after_seq):
            if event.kind == "state":
                status = event.data.get("status")
            if as_json:
                plain = {"seq": event.seq, "event": event.kind, "job_id": event.job_id, "data": event.data}
                click.echo(json.dumps(plain))
            else:
                click.echo(f"{event.seq:>5}  {event.kind:<8}  {_line(event.kind, event.data)}")
        if status is None:
            status = client.jobs.get(job_id).status
    if status != "completed":
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@json_option
@connect_option
def cancel(job_ids: tuple[str, ...], as_json: bool, connect: str | None) -> None:
    """Cancel jobs; harmless for those that have ended.

    Example: atelier jobs cancel 0197a2b4-5d7e-7c11-8a3f-0d6a1c9e4b52
    """
    with connected(connect) as client:
        done = [client.jobs.cancel(job_id) for job_id in job_ids]
    if as_json:
        print_json(done)
        return
    for item in done:
        click.echo(f"{item.job_id}  {item.status}")


def _line(kind: str, data: dict[str, object]) -> str:
    if kind == "state":
        error = data.get("error")
        why = f": {error.get('message')}" if isinstance(error, dict) else ""
        return f"{data.get('status')}{why}"
    if kind in ("progress", "preview"):
        return f"step {data.get('step')} of {data.get('steps')}"
    shown = {name: value for name, value in data.items() if name != "recipe"}
    return json.dumps(shown, default=str)
