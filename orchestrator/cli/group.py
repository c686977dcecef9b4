"""The groups of commands: what there is, loaded when called, and how every error ends."""

from importlib import import_module
from typing import Any, NoReturn

import click

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

# What to do about an error, where there is something; by its code.
ADVICE = {
    "circuit_open": "Try again later, or use another model.",
    "draining": "Try again when the server is back.",
    "internal": "The server's log has it under the request id.",
    "invalid_request": "See --help for what each option takes.",
    "model_invalid": "`atelier doctor` looks at the models found here.",
    "model_not_found": "`atelier doctor` lists the models found here, `atelier workers` who is connected.",
    "no_capable_worker": "See `atelier workers`; start one with `atelier worker`.",
    "not_found": "See the lists: `atelier jobs`, `sessions`, `workers`, `loras`, `controlnets`, each with `list`.",
    "out_of_memory": "Ask for a smaller picture or fewer at once.",
    "poisoned": "The worker's log tells why it ended.",
    "queue_full": "Wait for some jobs to end.",
    "request_conflict": "Use a new request id.",
    "timeout_queue": "Raise the timeout or add workers.",
    "unavailable": "The server's log tells which service fails.",
}


class LazyGroup(click.Group):
    """Commands by name: where each is, and its one line of help (so that none is loaded to be listed)."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, name = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.lazy.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            from protocol.schemas.base import nearest

            near = nearest(args[0], self.lazy)
            hint = f" Did you mean {near!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; every error becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            end("interrupted", INTERRUPTED)
        except Exception as error:
            end(*told(error))


def told(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an error. Errors nobody expected are raised again."""
    from protocol.errors import AtelierError

    if isinstance(error, AtelierError):
        retry = f" Try again in {error.retry_after_ms / 1000:g} s." if error.retry_after_ms else ""
        advice = "" if retry else " " + ADVICE.get(error.code.value, "")
        return f"{error.code.value}: {sentence(error.message)}{_specifics(error)}{retry or advice}".rstrip(), FAILED
    if isinstance(error, ConnectionError):  # ServerUnreachable among them
        return str(error), UNREACHABLE
    if isinstance(error, TimeoutError):
        return f"{sentence(str(error))} The server may be busy, or something else listens there.", UNREACHABLE
    if type(error).__name__ in ("SettingsError", "EndpointRefused"):
        return str(error), USAGE
    if isinstance(error, OSError | ImportError):
        return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error), 1
    raise error


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _specifics(error: Any) -> str:
    """What `details` tells and the message does not: the fields that are wrong, and the name that was meant."""
    fields = [item for item in error.details.get("fields") or [] if isinstance(item, dict)]
    told = [
        f"{item.get('field')}: {item.get('problem')}" for item in fields if str(item.get("field")) not in error.message
    ]
    near = [item["nearest"] for item in [*fields, error.details] if item.get("nearest")]
    hint = f" Did you mean {near[0]}?" if near and "did you mean" not in error.message else ""
    return (f" {'; '.join(told[:3])}." if told else "") + hint


def end(message: str, code: int) -> NoReturn:
    """Say why on stderr and leave."""
    click.echo(f"error: {message}" if code != INTERRUPTED else message, err=True)
    raise click.exceptions.Exit(code)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    lazy={
        "up": ("orchestrator.cli.up:up", "Run a server with its workers here."),
        "generate": ("orchestrator.cli.generate:generate", "Make pictures for a prompt."),
        "predict": ("orchestrator.cli.predict:predict", "Take tensors or pictures through a model."),
        "validate": ("orchestrator.cli.validate:validate", "Ask whether a request would run, where, and how long."),
        "jobs": ("orchestrator.cli.jobs:jobs", "List, show, watch and cancel jobs."),
        "sessions": ("orchestrator.cli.sessions:sessions", "List, show, create and cancel sessions."),
        "models": ("orchestrator.cli.models:models", "List models, register versions, share out traffic."),
        "loras": ("orchestrator.cli.loras:loras", "List, load and unload LoRAs."),
        "controlnets": ("orchestrator.cli.controlnets:controlnets", "List ControlNets, and make pictures they follow."),
        "workers": ("orchestrator.cli.workers:workers", "List the workers, or let one leave."),
        "orchestrator": ("orchestrator.cli.orchestrator:orchestrator", "Run the orchestrator alone."),
        "worker": ("orchestrator.cli.worker:worker", "Run one worker."),
        "doctor": ("orchestrator.cli.doctor:doctor", "Look for what is missing here, and say how to fix it."),
    },
)
@click.version_option(package_name="atelier", message="%(prog)s %(version)s")
def cli() -> None:
    """Generate pictures and run models on your own machines.

    \b
    Example, in two terminals:
      atelier up
      atelier generate "a red circle on a white background" -o out.png

    \b
    Exit codes:
      0    done
      1    the request, or a check, failed
      2    wrong usage
      3    no server answers
      130  interrupted
    """
