"""What is recorded of a round."""

from kdray.observers import RoundMetrics
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import Scores
from kdray.utils.files import read_json

_BEFORE = ("estimate", "compare", "make")  # phases with which some rounds begin; what they take is part of choosing


def round_metrics(
    directory: RunDirectory, number: int, scores: Scores, *, evaluation_queries: int, evaluate_s: float
) -> RoundMetrics:
    """The metrics of a round whose student was measured, from what its phases have kept.

    Args:
        evaluation_queries: charged so far.
        evaluate_s: seconds of measuring.
    """
    facts = directory.phases(number)
    earlier = [directory.phases(earlier) for earlier in range(number + 1)]
    seconds = {phase: facts[phase]["seconds"] for phase in ("choose", "query", "train")}
    seconds["choose"] += sum(facts.get(phase, {}).get("seconds", 0.0) for phase in _BEFORE)
    training = dict(facts["train"].get("training", {}))
    if "compare" in facts:
        training["choices"] = {"pool": facts["compare"]["choice"], **training.get("choices", {})}
        training["notes"] = [facts["compare"]["note"], *training.get("notes", [])]
    estimate = directory.artefact(number, "estimate")
    searched = directory.read_candidates(number).search
    return RoundMetrics(
        round=number,
        images=facts["train"]["images"],
        queries=sum(phases["query"]["charged"] for phases in earlier),
        bought=facts["query"]["charged"],
        reused=facts["query"]["reused"] + facts.get("estimate", {}).get("reused", 0),
        repeated=facts["query"].get("repeated", 0) + facts.get("estimate", {}).get("repeated", 0),
        short=facts["query"]["short"],
        set_aside=facts["query"]["set_aside"],
        evaluated=searched.get("passes", 0),
        search=searched,
        student_accuracy=scores.student,
        teacher_accuracy=scores.teacher,
        success_rate=scores.success,
        agreement=scores.agreement,
        agreement_low=scores.agreement_low,
        agreement_high=scores.agreement_high,
        compared=scores.compared,
        evaluation_queries=evaluation_queries,
        estimate_queries=sum(phases.get("estimate", {}).get("charged", 0) for phases in earlier),
        estimate=read_json(estimate) if estimate.exists() else {},
        loss=next(reversed(facts["train"]["losses"]), None),
        seconds=seconds | {"evaluate": evaluate_s},
        relative_entropy=facts["train"].get("relative_entropy"),
        training=training,
        boundaries=facts["query"].get("boundaries", {}),
    )
