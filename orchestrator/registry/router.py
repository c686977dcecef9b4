"""Which model a request goes to: its name resolved, its traffic shared out, and the first of the chain that suits."""

from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.core.model import Requirement
from orchestrator.payload import cost_of, is_light
from orchestrator.registry.offers import actions_of
from orchestrator.registry.resolve import Resolved
from orchestrator.registry.state import ANY, Policy
from orchestrator.registry.traffic import RETRY_MS, Candidate, Chosen, Site, choose
from protocol.errors import ModelNotFound, NoCapableWorker
from protocol.messages import Request
from protocol.model_ids import split
from protocol.schemas import Action

if TYPE_CHECKING:
    from orchestrator.broker import Broker

WORKING = ("inference.", "predict.")  # actions that traffic is for; the others are about models
RETRIES_MAX = 10_000  # (action, model) that were too slow


class Routed(NamedTuple):
    data: dict[str, Any]  # the request's, with the model's id as workers offer it
    device_ids: list[str] | None = None  # it is to run on one of these; None: anywhere
    shadow: str | None = None  # the model that gets a copy


class Router:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._retry_ms: dict[tuple[str, str], int] = {}  # when what was too slow is measured again

    def route(self, tenant: str, request: Request, action: Action, data: dict[str, Any]) -> Routed:
        """Raises ModelNotFound, and NoCapableWorker where a policy leaves no worker."""
        text, own = data.get("model_id"), data.get("fallbacks")
        if not own and (text is None or self._broker.resolver.is_as_it_is(tenant, text)):
            return Routed(data)
        resolver = self._broker.resolver
        chain, policy, shadow = resolver.fallbacks(tenant, own or ()), ANY, None
        if text is not None:
            try:
                resolved = self._resolved(tenant, request, action, data)
            except ModelNotFound:
                if not chain:
                    raise
            else:
                policy, shadow = resolved.traffic.policy, resolved.shadow
                chain = [resolved.model_id, *(chain or resolver.fallbacks(tenant, resolved.traffic.fallbacks))]
        elif not chain:
            raise ModelNotFound("None of the fallbacks is there, and the request names no model.")
        chosen = self._choose(tenant, chain, policy, request, action, data)
        routed = {**data, "model_id": chosen.model_id}
        if "fallbacks" in action.data.model_fields:
            routed["fallbacks"] = chosen.rest
        return Routed(routed, chosen.device_ids, shadow)

    def _resolved(self, tenant: str, request: Request, action: Action, data: dict[str, Any]) -> Resolved:
        text, resolver = data["model_id"], self._broker.resolver
        certain = self._broker.clock.now_ms() >= self._broker.core.trust_fleet_from_ms
        if not action.name.startswith(WORKING):
            return resolver.resolve(tenant, text, certain=certain)
        key = data.get("routing_key") or request.session_id or request.request_id
        return resolver.route(tenant, text, key, request.request_id, certain=certain)

    def _choose(
        self, tenant: str, chain: list[str], policy: Policy, request: Request, action: Action, data: dict[str, Any]
    ) -> Chosen:
        if len(chain) == 1 and not policy:
            return Chosen(chain[0], [])
        candidates = [self._candidate(tenant, model_id, request, action, data) for model_id in chain]

        def may_retry(model_id: str) -> bool:
            return self._may_retry(action.name, model_id)

        chosen = choose(candidates, policy, may_retry)
        if chosen is not None:
            return chosen
        if policy.devices is not None or policy.cost_max is not None:
            raise NoCapableWorker("The policy of this model's traffic leaves no worker that could run it now.")
        return Chosen(chain[0], chain[1:])  # the core will say what is wrong, or keep it until a worker comes

    def _candidate(
        self, tenant: str, model_id: str, request: Request, action: Action, data: dict[str, Any]
    ) -> Candidate:
        core = self._broker.core
        need = Requirement(action.name, model_id, request.worker_id, request.device_id, light=is_light(action.name))
        able = {worker_id for worker_id, entry in self._broker.offers.entries(model_id) if _can(entry, action.name)}
        sites = [
            Site(worker.device_id, worker.profile.device_kind)
            for worker_id, worker in core.fleet.by_id.items()
            if (worker_id in able or worker.profile.capability.models is None)
            and not worker.draining
            and worker.can_run(need)
        ]
        cost = cost_of(action.name, {**data, "model_id": model_id})
        latency_ms = core.estimates.run_ms(cost) if core.estimates.measured(cost) else None
        return Candidate(model_id, sites, latency_ms, self._cost(tenant, model_id))

    def _cost(self, tenant: str, model_id: str) -> float | None:
        """As its metadata tells; that of the version goes before that of its name."""
        name, version = split(model_id)
        model = self._broker.registry.get(tenant, name)
        if model is None:
            return None
        known = model.known(version)
        cost = known.metadata.get("cost") if known is not None else None
        return model.metadata.get("cost") if cost is None else cost

    def _may_retry(self, action: str, model_id: str) -> bool:
        """One request now and then goes to what was too slow, or nobody would learn that it is not any more."""
        now_ms, key = self._broker.clock.now_ms(), (action, model_id)
        due_ms = self._retry_ms.get(key)
        if due_ms is not None and now_ms < due_ms:
            return False
        if len(self._retry_ms) >= RETRIES_MAX:
            self._retry_ms.clear()
        self._retry_ms[key] = now_ms + RETRY_MS
        return due_ms is not None


def _can(entry: dict[str, Any], action: str) -> bool:
    actions = actions_of(entry)
    return actions is None or action in actions
