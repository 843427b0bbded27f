"""A check in lines of plain text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from qdrant_client import models

from e2rank_rag.check.examine import Findings
from e2rank_rag.check.fit import NO_FIELDS, Mismatch
from e2rank_rag.check.gain import Gain
from e2rank_rag.check.outline import Outline
from e2rank_rag.check.probe import SAME, Match
from e2rank_rag.check.sample import Sample
from e2rank_rag.models.shipped import SHIPPED_MODELS

UNIT = 1e-2
"""Lengths of vectors within this of 1 are unit length: bfloat16 rounds so far."""

SHOWN_IDS = 3

JUDGED = {
    "qrels": "judged by the qrels",
    "judge": "judged by a chat model that ordered the first 5 documents of every method together",
    "made-up": "MADE UP from the documents: such queries favour words, and say little of what "
    "users ask. Give --queries with --qrels, or with --endpoint and --judge",
}


def layout_lines(findings: Findings) -> Iterator[str]:
    """How the collection is laid out."""
    seen, sample = findings.outline, findings.sample
    writer = sample.layout.writer
    laid = "in no layout that is known here" if sample.layout.guessed else f"laid out by {writer}"
    yield f"collection {seen.collection!r}: {seen.points:,} points, {laid}"
    for vector in seen.vectors:
        name = "without a name" if vector.name is None else repr(vector.name)
        several = ", several per document" if vector.several else ""
        yield f"  vector {name}: {vector.size} dimensions, {vector.distance.value}{several}"
    shortest, longest = _lengths(sample)
    if abs(shortest - 1) > UNIT or abs(longest - 1) > UNIT:
        dot = findings.vector.distance == models.Distance.DOT
        effect = ", which changes the order of a search by Dot" if dot else ""
        yield f"  vectors are {shortest:.3g} to {longest:.3g} long, not of unit length{effect}"
    yield f"  sparse vectors: {_sparse(findings)}"
    yield f"  payload keys: {', '.join(sample.layout.keys)}"
    if sample.layout.guessed:
        layout = sample.layout.layout
        yield f"  the text seems to be at {layout.content_key!r}, its id to be the point's"
    yield f"  record of the model: {_record(seen)}"
    if sample.unusable:
        yield f"  {sample.unusable} of the drawn points have no text or no vector to compare"


def model_lines(findings: Findings) -> Iterator[str]:
    """Which model wrote the vectors, or that none of the tried ones did."""
    for tried in findings.tried:
        if tried.match is None:
            yield f"{tried.model} was not compared: {tried.reason}"
    match = findings.match
    if match is None:
        yield refusal(findings)
        return
    yield f"written by {called(match.model)}"
    yield f"  cosine {SAME} or more with {_counted(match)}"
    if match.same < len(match.cosines):
        yield f"  not with {_others(match)}: written from other texts, or changed since"
    yield f"  text: {_text(match)}"
    yield f"  length: {_length(match)}"
    if match.recipe.truncate_dim != match.own.truncate_dim:
        yield f"  dimensions: the first {match.recipe.truncate_dim} of the model's"
    if not findings.vector.usable:
        distance = findings.vector.distance.value
        yield f"  compared by {distance}: no store here searches it; index again with Cosine"


def refusal(findings: Findings) -> str:
    """Why no model is named, with the nearest miss."""
    nearest = findings.nearest
    begin = "no model at hand wrote these vectors, and no guess is made"
    if nearest is None:
        return f"{begin}: none could be compared"
    return (
        f"{begin}: the nearest, {nearest.model}, reaches a cosine of {SAME} with "
        f"{nearest.same} of {len(nearest.cosines)} texts (median {nearest.median:.3f}, best "
        f"{nearest.cosines.max():.3f}). Name other models with --models"
    )


def fit_lines(mismatches: tuple[Mismatch, ...]) -> Iterator[str]:
    """Whether the described pipeline fits."""
    if not mismatches:
        yield "the pipeline as described makes these vectors"
        return
    yield "the pipeline as described does not make these vectors:"
    for each in mismatches:
        yield f"  {each.what}: {each.pipeline}; in the collection: {each.collection}. {each.change}"


def gain_lines(gain: Gain) -> Iterator[str]:
    """What stands below the table of methods."""
    yield f"{gain.queries} queries, {JUDGED[gain.judged]}"
    if gain.unjudged:
        yield f"{gain.unjudged} more were not judged and are left out"
    if gain.words == "copy":
        yield "hybrid: the collection holds no words; they were added to a copy in memory"
    if gain.words == "none":
        yield "hybrid was left out: the collection holds no words, or none that can be searched"


def called(model: str) -> str:
    """A model's name; the two that ship make the same document vectors."""
    if model in SHIPPED_MODELS:
        return f"all-MiniLM-L6-v2, which is {' and '.join(map(repr, SHIPPED_MODELS))} here"
    return repr(model)


def as_json(findings: Findings, gain: Gain | None, programs: dict[str, str]) -> dict[str, Any]:
    """The check as JSON values."""
    seen, sample, match = findings.outline, findings.sample, findings.match
    shortest, longest = _lengths(sample)
    return {
        "collection": seen.collection,
        "points": seen.points,
        "layout": sample.layout.writer,
        "payload_keys": list(sample.layout.keys),
        "vectors": [
            {"name": v.name, "size": v.size, "distance": v.distance.value, "several": v.several}
            for v in seen.vectors
        ],
        "vector_lengths": {"least": shortest, "most": longest},
        "sparse_vectors": [{"name": n, "idf": idf} for n, idf in seen.sparse.items()],
        "record": dict(seen.record),
        "sampled_texts": len(sample.texts),
        "tried": [
            {
                "model": each.model,
                **({"reason": each.reason} if each.match is None else _measured(each.match)),
            }
            for each in findings.tried
        ],
        "model": None if match is None else match.model,
        "variant": None if match is None else _variant(match),
        "mismatches": (
            None if findings.mismatches is None else [asdict(m) for m in findings.mismatches]
        ),
        "gain": None if gain is None else _gain(gain),
        "programs": programs,
    }


def _gain(gain: Gain) -> dict[str, Any]:
    compared = gain.differences.by_method
    return {
        "queries": gain.queries,
        "judged": gain.judged,
        "unjudged": gain.unjudged,
        "words": gain.words,
        "systems": {
            name: {**result.measures, "seconds_per_query": result.seconds_per_query}
            for name, result in gain.results.items()
        },
        "differences": {
            name: {
                measure: {"against": gain.differences.against, **asdict(each)}
                for measure, each in by.items()
            }
            for name, by in compared.items()
        },
    }


def _variant(match: Match) -> dict[str, Any]:
    variant = match.variant
    return {
        "meta_fields": list(variant.fields),
        "separator": variant.separator if variant.fields else None,
        "separators_alike": list(match.separators),
        "prefix": match.prefix,
        "max_length": variant.tokens,
        "max_lengths_alike": list(match.limits),
        "truncate_dim": match.recipe.truncate_dim,
    }


def _measured(match: Match) -> dict[str, Any]:
    return {
        "same": match.same,
        "of": len(match.cosines),
        "cosine_least": float(match.cosines.min()),
        "cosine_median": match.median,
        "cosine_most": float(match.cosines.max()),
    }


def _counted(match: Match) -> str:
    lowest = match.cosines[match.cosines >= SAME].min()
    return f"{match.same} of {len(match.cosines)} sampled texts, the lowest {lowest:.5f}"


def _others(match: Match) -> str:
    odd = [
        f"{id!r} ({cosine:.3f})"
        for id, cosine in zip(match.ids, match.cosines, strict=True)
        if cosine < SAME
    ]
    more = f" and {len(odd) - SHOWN_IDS} more" if len(odd) > SHOWN_IDS else ""
    return f"{', '.join(odd[:SHOWN_IDS])}{more}"


def _text(match: Match) -> str:
    variant = match.variant
    found = NO_FIELDS
    if variant.fields:
        found = f"{', '.join(variant.fields)} in front of it, joined by {variant.separator!r}"
        alike = [repr(each) for each in match.separators if each != variant.separator]
        if alike:
            found += f" (or {', '.join(alike)}: the sampled texts cannot tell them apart)"
    if match.prefix is None:
        return f"{found}, in the model's own prompt"
    return f"{found}, behind {match.prefix!r}" if match.prefix else found


def _length(match: Match) -> str:
    alike = [str(each) for each in match.limits if each != match.variant.tokens]
    found = f"cut at {match.variant.tokens} tokens"
    if not alike:
        return found
    return f"{found}, or at {', '.join(alike)}: no sampled text is long enough to tell"


def _lengths(sample: Sample) -> tuple[float, float]:
    lengths = [text.length for text in sample.texts]
    return min(lengths), max(lengths)


def _sparse(findings: Findings) -> str:
    words = None if findings.place is None else findings.place.words
    described = []
    for name, idf in findings.outline.sparse.items():
        holds = ""
        if words is not None and words.vector_name == name:
            holds = f", BM25 of {words.bm25.language} texts"
        described.append(f"{name!r}{holds}, {'with' if idf else 'without'} IDF")
    return "; ".join(described) or "none"


def _record(seen: Outline) -> str:
    model = seen.record.get("model")
    return "none" if model is None else f"{model!r}, fingerprint {seen.record.get('fingerprint')}"
