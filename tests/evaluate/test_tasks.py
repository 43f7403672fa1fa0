"""Log-likelihoods against a plain transformers forward of each request alone, whatever its company."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers

from data.tiny_tokenizer import word_tokenizer
from quantriage.data.task_items import TaskSet, read_task
from quantriage.errors import CheckpointError, DataError
from quantriage.evaluate.tasks import Place, Reader, Request, carriers, log_likelihoods, longest_input
from quantriage.stream.compute import exact
from small_models import VOCABULARY, Saved

CLOSE = 2e-4  # sums of up to ten float32 log-probabilities, in other batches


def some_requests(count: int, seed: int = 0) -> list[Request]:
    """Of 2 to 31 tokens, of which 1 to 10 are scored."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 31)))
        made.append(Request(ids, draw.randint(1, min(10, len(ids) - 1))))
    return made


def alone(saved: Saved, request: Request) -> float:
    """By transformers, without padding or company."""
    with torch.no_grad():
        logits = saved.whole(torch.tensor([request.ids])).logits[0].double()
    found = torch.log_softmax(logits, dim=-1)
    places = range(len(request.ids) - request.scored, len(request.ids))
    return sum(float(found[i - 1, request.ids[i]]) for i in places)


def place(folder: Path, state_bytes: int = 1 << 30) -> Place:
    return Place(exact(), folder, state_bytes)


def test_every_architecture_gives_what_a_plain_forward_of_each_request_gives(
    saved: Saved, tmp_path: Path
) -> None:
    model, sites = saved.open()
    requests = some_requests(23)
    found = log_likelihoods(model, sites.sites, requests, place(tmp_path))
    assert found == pytest.approx([alone(saved, request) for request in requests], abs=CLOSE)


def test_order_company_and_a_budget_of_nothing_change_nothing(llama: Saved, tmp_path: Path) -> None:
    model, sites = llama.open()
    requests = some_requests(40, seed=1)
    together = log_likelihoods(model, sites.sites, requests, place(tmp_path))
    order = random.Random(2).sample(range(40), 40)
    shuffled = log_likelihoods(
        model, sites.sites, [requests[i] for i in order], place(tmp_path, state_bytes=0)
    )
    assert shuffled == pytest.approx([together[i] for i in order], abs=CLOSE)
    single = [log_likelihoods(model, sites.sites, [r], place(tmp_path))[0] for r in requests[:5]]
    assert single == pytest.approx(together[:5], abs=CLOSE)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_inputs_that_another_begins_with_are_not_run_again(llama: Saved, tmp_path: Path) -> None:
    model, sites = llama.open()
    prompt = tuple(range(10, 19))
    endings = ((7,), (8,), (7, 9), (7, 9, 5), (8,), (6, 9, 5, 4, 3, 2, 1, 0, 1, 2))
    requests = [Request(prompt + ending, len(ending)) for ending in endings]
    requests.append(Request(prompt[:4], 3))
    assert carriers(requests) == {3: [3, 2], 5: [5, 0, 1, 4, 6]}
    found = log_likelihoods(model, sites.sites, requests, place(tmp_path))
    assert found == pytest.approx([alone(llama, request) for request in requests], abs=CLOSE)


def test_replaced_weights_are_the_ones_that_run(llama: Saved, tmp_path: Path) -> None:
    model, sites = llama.open()
    requests = some_requests(6)
    name = sites.sites[0].name
    weight = 3 * llama.tensors()[f"{name}.weight"]
    found = log_likelihoods(model, sites.sites, requests, place(tmp_path), {name: lambda: weight})
    module = llama.whole.get_submodule(name)
    before = module.weight.data.clone()
    try:
        module.weight.data.mul_(3)
        wanted = [alone(llama, request) for request in requests]
    finally:
        module.weight.data.copy_(before)
    assert found == pytest.approx(wanted, abs=CLOSE)
    assert found != pytest.approx([alone(llama, request) for request in requests], abs=0.01)


def test_an_input_as_long_as_the_model_reads_is_not_padded_beyond(
    saved_models: dict[str, Saved], tmp_path: Path
) -> None:
    gpt2 = saved_models["gpt2"]  # its positions are a table of 64 rows
    model, sites = gpt2.open()
    assert longest_input(model) == 64
    request = Request(tuple(i % VOCABULARY for i in range(65)), 3)
    short = Request(tuple(i % VOCABULARY for i in range(60)), 3)
    long = Request(request.ids[:-1], 2)
    found = log_likelihoods(model, sites.sites, [request, short, long], place(tmp_path))
    assert found[1:] == pytest.approx([alone(gpt2, short), alone(gpt2, long)], abs=CLOSE)


def test_a_model_that_computes_no_numbers_is_refused(llama: Saved, tmp_path: Path) -> None:
    model, sites = llama.open()
    name = sites.sites[0].name
    broken = torch.full_like(llama.tensors()[f"{name}.weight"], float("nan"))
    with pytest.raises(CheckpointError, match="3 of 3 continuations have no finite likelihood"):
        log_likelihoods(model, sites.sites, some_requests(3), place(tmp_path), {name: lambda: broken})


# -- tokens


def task(folder: Path, query: str, *choices: str) -> TaskSet:
    path = folder / "own.jsonl"
    path.write_text(json.dumps({"query": query, "choices": list(choices), "gold": 0}) + "\n")
    return read_task(str(path), 0)


def test_a_choice_is_scored_after_the_prompt_with_the_tokens_that_begin_every_text(tmp_path: Path) -> None:
    asked = Reader(word_tokenizer(adds_bos=True), 5000, None).task(task(tmp_path, "w1 w2 ", "w3", "w4 w5"))
    assert asked.requests == (Request((4000, 1, 2, 3), 1), Request((4000, 1, 2, 4, 5), 2))
    plain = Reader(word_tokenizer(), 5000, None).task(task(tmp_path, "w1 w2", "w3", "w4 w5"))
    assert plain.requests == (Request((1, 2, 3), 1), Request((1, 2, 4, 5), 2))
    assert plain.by_item((0.1, 0.2)) == ((0.1, 0.2),)


def test_what_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    asked = Reader(word_tokenizer(), 5000, 3).task(task(tmp_path, "w1 w2 w3 w4", "w5", "w6 w7 w8"))
    assert asked.requests == (Request((2, 3, 4, 5), 1), Request((4, 6, 7, 8), 3))


@pytest.mark.parametrize(
    ("rows", "longest", "message"),
    [(3, None, "token id 3, but the model embeds 3"), (5000, 2, "at most 2 of choice")],
)
def test_tokens_that_the_model_cannot_take_are_refused(
    rows: int, longest: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        Reader(word_tokenizer(), rows, longest).task(task(tmp_path, "w1", "w2 w3 w3", "w2"))


def test_a_prompt_of_which_the_tokenizer_makes_nothing_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("gone", "")
    with pytest.raises(DataError, match="line 1: 0 tokens of prompt and 1 of ' w2'"):
        Reader(tokenizer, 5000, None).task(task(tmp_path, "gone", "w2", "w3"))
    with pytest.raises(DataError, match="line 1: 1 tokens of prompt and 0 of ' gone'"):
        Reader(tokenizer, 5000, None).task(task(tmp_path, "w1", "gone", "w3"))
