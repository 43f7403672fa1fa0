"""Every weight of the candidate beside the reference's: what differs more than rounding explains, and why.

One tensor of each side is in memory at a time. Sites that differ too much are read a second time, when it is
known whether their values are some other tensor's and whether a rescaling is undone elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median

import torch
from torch import Tensor

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.faults import LOCAL, WHOLE, name_cause
from quantriage.diagnose.lint.faults.scaling import group_factors
from quantriage.diagnose.lint.matching import check_places, true_places
from quantriage.diagnose.lint.nearest import expected_error, nearest_share, typical_error
from quantriage.diagnose.lint.pair import Pair, sums, turned
from quantriage.diagnose.lint.rescaling import Rescaling, fit_rescaling, undoes
from quantriage.diagnose.lint.subject import Subject
from quantriage.diagnose.lint.summary import SiteSummary
from quantriage.numerics.stored_weight import StoredWeight
from quantriage.records.diagnosis import LintFinding

_SUSPECT = 1.5  # times the expected error; GPTQ on good data stays near 1.3
_LEAST = 0.03  # below this error nothing is looked for
_UNRELATED = 0.5  # cosine below which values may belong to another tensor
_LARGE, _HUGE = 4.0, 8.0  # times the expected error, without a pattern: beside sound siblings, or in any case
_STANDS_OUT = 2.0  # times the siblings' median ratio of error to expected error
_FEWEST_SIBLINGS = 4
_VECTOR = 0.004  # relative change of a norm or bias; bfloat16 rounding is 0.001
_VECTOR_BROKEN = 0.5
_RECIPROCAL = 0.15  # two modules' factors multiply to 1 within this (logarithm, median)
_RESCALED = tuple(check for check in WHOLE if check not in LOCAL)  # a rescaling looks like local damage
_BY_SIBLINGS = ("clipped", "large-error")  # causes that healthy rounding can resemble


@dataclass
class Against:
    """Compares, collects, and concludes. Feed every tensor through `compare`, then call `conclude`."""

    subject: Subject
    reference: Subject
    pairs: Mapping[str, str]  # candidate tensor -> reference's tensor
    misfits: dict[str, str] = field(default_factory=dict)
    suspects: list[str] = field(default_factory=list)
    rescaled: dict[str, Rescaling] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)  # ratio to the reference's, where it differs
    vector_errors: dict[str, float] = field(default_factory=dict)
    column_factors: dict[str, Tensor] = field(default_factory=dict)
    found: list[LintFinding] = field(default_factory=list)
    matrices: int = 0

    def compare(
        self,
        name: str,
        reference: Tensor,
        candidate: Tensor,
        stored: StoredWeight | None,
        site: SiteSummary | None,
    ) -> SiteSummary | None:
        """Take one tensor in; the site with its figures. Peak memory: both tensors and a few chunks."""
        if reference.shape != candidate.shape:
            return site
        if candidate.ndim < 2:
            self._vector(name, reference, candidate)
            return site
        pair = self._pair(name, reference, candidate, stored)
        self.matrices += 1
        relative = pair.relative
        module = name.removesuffix(".weight")
        if self.vectors:
            self.column_factors[module] = _factors(pair.sums.column_product, pair.sums.column_power)
        if pair.sums.cosine < _UNRELATED and relative > _LEAST:
            self.misfits[name] = self.pairs[name]
        elif relative > max(_SUSPECT * pair.expected, _LEAST):
            fit = fit_rescaling(pair)
            if fit is None:
                self.suspects.append(name)
            else:
                self.rescaled[name] = fit
        elif (local := name_cause(pair, LOCAL)) is not None:
            self.found.append(local)
        if site is None or not torch.isfinite(torch.tensor(relative)):
            return site
        share = None if pair.stored is None else nearest_share(pair.reference, pair.stored)
        return replace(site, relative=relative, expected=pair.expected, on_nearest=share)

    def conclude(self, sites: Mapping[str, SiteSummary], skip: frozenset[str]) -> list[LintFinding]:
        """Findings, once every tensor was compared. `skip`: modules whose fault is known already."""
        misfits = {n: r for n, r in self.misfits.items() if n.removesuffix(".weight") not in skip}
        places = true_places(self.subject, self.reference, misfits, self.pairs) if misfits else {}
        found = [*self.found, *check_places(places, misfits, self.subject.blocks)]
        lost = [name for name in misfits if name not in places]
        if 2 * len(lost) > self.matrices and not any(self._cause(name) for name in lost[:3]):
            text = f"{len(lost)} of {self.matrices} matrices resemble none of the reference's"
            return [finding("wrong-base", None, text)]
        moved = {one.site for one in found if one.check == "block-order"}
        found += [one for one in self._vector_findings() if self._stack_of(one.site) not in moved]
        found += self._named([*lost, *self._unproved()], sites, skip)
        found += self._named(self.suspects, sites, skip)
        proved = [n for n in self.rescaled if n not in set(self._unproved())]
        if proved:
            text = f"{len(proved)} modules, first {proved[0].removesuffix('.weight')}; the inverse was found"
            found.append(finding("rescaled", None, text))
        return self._exchanged(found)

    def _pair(self, name: str, reference: Tensor, candidate: Tensor, stored: StoredWeight | None) -> Pair:
        reference, candidate = (t.reshape(-1, t.shape[-1]) for t in (reference, candidate))
        expected: float | None = None
        if stored is not None and turned(candidate, stored):
            reference, candidate = reference.T, candidate.T
        elif stored is not None and stored.shape != tuple(candidate.shape):
            expected, stored = typical_error(stored), None  # stacked in an order of its own
        expected = expected_error(reference, stored) if expected is None else expected
        module = name.removesuffix(".weight")
        return Pair(module, reference, candidate, stored, sums(reference, candidate), expected)

    def _read(self, name: str) -> Pair:
        """The pair again, for a suspect."""
        module = name.removesuffix(".weight")
        stored = self.subject.weights.stored(module) if len(self.subject.shape(name)) > 1 else None
        reference = self.reference.weights.get(self.pairs[name])
        return self._pair(name, reference, self.subject.weights.get(name), stored)

    def _cause(self, name: str) -> LintFinding | None:
        return name_cause(self._read(name), WHOLE)

    def _named(
        self, names: list[str], sites: Mapping[str, SiteSummary], skip: frozenset[str]
    ) -> Iterator[LintFinding]:
        for name in names:
            module = name.removesuffix(".weight")
            if module in skip:
                continue
            pair = self._read(name)
            cause = name_cause(pair, _RESCALED if name in self.rescaled else WHOLE)
            cause = cause or self._rescaling(name) or _unnamed(pair)
            if cause is None or (cause.check in _BY_SIBLINGS and not self._stands_out(pair, sites)):
                continue
            yield cause

    def _rescaling(self, name: str) -> LintFinding | None:
        """A rescaling that nothing in the block undoes."""
        fit = self.rescaled.get(name)
        if fit is None:
            return None
        check, factors = ("columns-rescaled", fit.columns) if fit.of_columns else ("rows-rescaled", fit.rows)
        low, high = float(factors.min()), float(factors.max())
        return finding(
            check, name.removesuffix(".weight"), f"factors {low:.2g} to {high:.2g}; no inverse found"
        )

    def _unproved(self) -> list[str]:
        """Rescaled modules without the inverse in their block."""
        return [name for name, fit in self.rescaled.items() if not self._undone(name, fit)]

    def _undone(self, name: str, fit: Rescaling) -> bool:
        block = self._block(name)
        near = {
            other: f for other, f in self.rescaled.items() if self._block(other) == block and other != name
        }
        vectors = [v for other, v in self.vectors.items() if self._block(other) == block]
        width = self._head_width()
        columns = not fit.of_columns or any(
            undoes(fit.columns, other, width) for other in [*vectors, *(f.rows for f in near.values())]
        )
        behind = [
            *(f.columns for f in near.values()),
            *self._columns_near(name),
        ]  # rescaled too little to fit
        rows = not fit.of_rows or any(undoes(fit.rows, other, width) for other in behind)
        return columns and rows

    def _columns_near(self, name: str) -> list[Tensor]:
        """Factors of the columns of the other modules in the block of a tensor."""
        own, block = name.removesuffix(".weight"), self._block(name)
        found = self.column_factors.items()
        return [f for module, f in found if module != own and self._block(f"{module}.weight") == block]

    def _head_width(self) -> int | None:
        width, heads = self.subject.setting("hidden_size"), self.subject.setting("num_attention_heads")
        return self.subject.setting("head_dim") or (width // heads if width and heads else None)

    def _stack_of(self, name: str | None) -> str | None:
        """The block of a tensor as block-order findings name it."""
        place = None if name is None else self.subject.blocks.get(name)
        return None if place is None else f"{place.stack}.{place.block}"

    def _block(self, name: str) -> int | None:
        place = self.subject.blocks.get(name)
        return None if place is None else place.block

    def _vector(self, name: str, reference: Tensor, candidate: Tensor) -> None:
        left, right = reference.to(torch.float32), candidate.to(torch.float32)
        norm = float(left.norm())
        error = float((right - left).norm()) / norm if norm > 0 else float(right.norm() > 0)
        if error > _VECTOR:
            self.vectors[name] = torch.where(left != 0, right / left, 1.0)
            self.vector_errors[name] = error

    def _vector_findings(self) -> list[LintFinding]:
        """Norms and biases that changed, unless the columns behind them changed inversely."""
        changed = [name for name in self.vectors if not self._vector_undone(name)]
        total = sum(1 for name in self.pairs if len(self.subject.shape(name)) == 1)
        mild = [name for name in changed if self.vector_errors[name] < _VECTOR_BROKEN]
        if 2 * len(mild) > total and len(mild) > 2:
            text = f"{len(mild)} of {total} norms and biases differ from the reference's"
            rest = [name for name in changed if name not in set(mild)]
            return [finding("other-finetune", None, text), *(self._vector_finding(name) for name in rest)]
        return [self._vector_finding(name) for name in changed]

    def _vector_finding(self, name: str) -> LintFinding:
        error = self.vector_errors[name]
        severe = error > _VECTOR_BROKEN
        text = f"differs from the reference's by {100 * error:.1f}% of its norm"
        return finding("dense-differs", name, text, severity="error" if severe else "warning")

    def _vector_undone(self, name: str) -> bool:
        ratio, block = self.vectors[name], self._block(name)
        near = self._columns_near(name)
        near += [f.columns for other, f in self.rescaled.items() if self._block(other) == block]
        return any(undoes(ratio, factors, self._head_width()) for factors in near)

    def _stands_out(self, pair: Pair, sites: Mapping[str, SiteSummary]) -> bool:
        """Whether a site is worse than its siblings, or so bad that it does not matter."""
        ratio = pair.relative / max(pair.expected, 1e-9)
        if ratio > _HUGE:
            return True
        place = self.subject.blocks.get(f"{pair.module}.weight")
        others = [
            s.relative / max(s.expected, 1e-9)
            for module, s in sites.items()
            if s.relative is not None and s.expected is not None and module != pair.module
            if place is not None
            and (p := self.subject.blocks.get(f"{module}.weight"))
            and p.kind == place.kind
        ]
        if len(others) < _FEWEST_SIBLINGS:
            others = [s.relative / s.expected for s in sites.values() if s.relative and s.expected]
        return not others or ratio > _STANDS_OUT * median(others) or ratio > _LARGE

    def _exchanged(self, found: list[LintFinding]) -> list[LintFinding]:
        """Of modules with wrong scales, those whose factors are each other's inverse."""
        wrong = [one.site for one in found if one.check in ("wrong-scales", "scaled", "rows-rescaled")]
        factors: dict[str, Tensor] = {}
        for site in wrong[:64]:
            known = group_factors(self._read(f"{site}.weight")) if site is not None else None
            if site is not None and known is not None:
                factors[site] = known[0]
        partner: dict[str, str] = {}
        for (one, ours), (other, theirs) in combinations(factors.items(), 2):
            if ours.shape == theirs.shape and _reciprocal(ours, theirs):
                partner[one], partner[other] = other, one
        return [
            finding(
                "scales-exchanged", one.site, f"its scales are those of {partner[one.site]}: {one.evidence}"
            )
            if one.site in partner
            else one
            for one in found
        ]


def _unnamed(pair: Pair) -> LintFinding | None:
    """Much too large an error without a pattern."""
    ratio = pair.relative / max(pair.expected, 1e-9)
    if pair.stored is None:
        text = f"differs from the reference's by {100 * pair.relative:.1f}% of its norm"
        severe = pair.relative > _VECTOR_BROKEN
        return finding("dense-differs", pair.module, text, severity="error" if severe else "warning")
    if ratio < _LARGE:
        return None
    text = f"error {100 * pair.relative:.0f}%; plain rounding has {100 * pair.expected:.1f}%"
    return finding("large-error", pair.module, text, severity="error" if ratio > _HUGE else "warning")


def _reciprocal(ours: Tensor, theirs: Tensor) -> bool:
    usable = (ours > 0) & (theirs > 0)
    if not bool(usable.any()):
        return False
    product = (ours[usable] * theirs[usable]).log().abs()
    return float(product.median()) < _RECIPROCAL


def _factors(product: Tensor, power: Tensor) -> Tensor:
    return torch.where(power > 0, product / power, 1.0).to(torch.float32)
