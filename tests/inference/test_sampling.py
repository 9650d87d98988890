"""Draws against the frequencies of their distribution, and where the randomness comes from."""

from __future__ import annotations

import torch

from csm.inference.sampling import Sampling, SlotSampling, draw_noise


def draw(logits: torch.Tensor, temperature: float, topk: int, candidates: int) -> torch.Tensor:
    rows = logits.shape[0]
    noise = torch.empty_like(logits)
    draw_noise(noise, torch.Generator().manual_seed(0))
    sampling = SlotSampling(torch.full((rows, 1), temperature), torch.full((rows, 1), topk))
    return sampling.sample(logits, noise, candidates)


def test_draws_from_all_codes():
    logits = torch.tensor([[1.0, 0.0, 0.0, -1.0]]).repeat(40_000, 1)
    frequencies = torch.bincount(draw(logits, 1.0, topk=4, candidates=4), minlength=4) / 40_000
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=0.01, rtol=0)


def test_draws_follow_temperature_and_topk_with_ties():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]]).repeat(40_000, 1)
    frequencies = torch.bincount(draw(logits, 0.5, topk=2, candidates=3), minlength=5) / 40_000
    expected = torch.tensor([4.0, 2.0, 2.0]).softmax(0)  # k = 2 keeps both ids tied for second place
    torch.testing.assert_close(frequencies[:3], expected, atol=0.01, rtol=0)
    assert frequencies[3:].sum() == 0


def test_slots_have_their_own_options():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    noise = torch.tensor([[0.0, 0.0, 0.0, 0.0], [99.0, 0.0, 3.0, 2.0], [99.0, 0.0, 0.0, 0.0]])
    sampling = SlotSampling(torch.tensor([[1.0], [2.0], [0.7]]), torch.tensor([[1], [2], [4]]))
    assert sampling.sample(logits, noise, candidates=4).tolist() == [1, 2, 0]  # greedy; of the best two; of all
    assert sampling.sample(logits, noise, candidates=0).tolist() == [1, 1, 1]


def test_noise_is_that_of_an_exponential_race():
    noise = torch.empty(400_000)
    draw_noise(noise, torch.Generator().manual_seed(1))
    exponential = (-noise).exp()
    assert abs(exponential.mean() - 1) < 0.01 and abs(exponential.var() - 1) < 0.02
    assert abs((exponential > 2).float().mean() - torch.tensor(-2.0).exp()) < 0.005


def test_a_request_without_a_seed_takes_one_from_the_global_generator():
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        generator = Sampling().generator(torch.device("cpu"))
        drawn.append(torch.rand(3, generator=generator))
    assert torch.equal(*drawn)
    before = torch.get_rng_state()
    assert Sampling(temperature=0).generator(torch.device("cpu")) is None
    assert torch.equal(before, torch.get_rng_state())  # greedy speech leaves the random numbers of a training run alone
