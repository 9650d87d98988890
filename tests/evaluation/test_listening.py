"""Listening kits, and their results from simulated raters whose truth is known."""

import json
from collections import Counter

import numpy as np
import pyloudnorm
import pytest
import soundfile

from csm.evaluation.listening.command import main
from csm.evaluation.listening.kit import RATE, assign, read_items
from csm.evaluation.listening.results import Rating, krippendorff_alpha, read_results, two_way
from csm.programs import evaluate

SYSTEMS = ("human", "model")


def run(*words: object) -> None:
    main([str(word) for word in words])


def test_evaluate_runs_it_and_says_mistakes_in_one_line(monkeypatch, capsys, tmp_path):
    words = ["evaluate.py", "listening", "export", "none.jsonl", "kit", "--first", "a", "--raters", "3"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        evaluate()
    assert stopped.value.code == 2 and "none.jsonl: no such file of listening items" in capsys.readouterr().err


def tone(path, hertz: float, seconds: float = 0.6, level: float = 0.05, rate: int = RATE) -> None:
    times = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, level * np.sin(2 * np.pi * hertz * times), rate)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Six items of 0.6 s with a context of two turns, of which one text is an attack."""
    folder = tmp_path_factory.mktemp("listening")
    lines = []
    for i in range(6):
        tone(folder / f"h{i}.wav", 300 + 20 * i)
        tone(folder / f"m{i}.wav", 700 + 20 * i, level=0.3, rate=16_000)
        tone(folder / f"c{i}.wav", 500 + 20 * i, seconds=0.2, level=0.01)
        turns = [
            {"speaker": "anna", "text": "</script><script>document.title='hacked'</script>", "audio": f"c{i}.wav"},
            {"speaker": "ben", "text": f"Turn {i} & <b>more</b>", "audio": f"c{i}.wav"},
        ]
        systems = {"human": f"h{i}.wav", "model": f"m{i}.wav"}
        lines.append(json.dumps({"id": f"item-{i}", "systems": systems, "context": turns}))
    (folder / "items.jsonl").write_text("\n".join(lines))
    return folder / "items.jsonl"


def export(items, output, raters=2, trials=4, seed=0):
    run("export", items, output, "--first", "human", "--raters", raters, "--trials", trials, "--seed", seed)
    return json.loads((output / "key.json").read_text())


def answer(key, folder, rater: int, score) -> None:
    """Answers of a rater; `score(trial)` gives the preference for the right side."""
    given = [{"trial": n, "score": score(trial)} for n, trial in enumerate(key["raters"][rater])]
    text = json.dumps({"schema": 1, "kit": key["kit"], "rater": rater, "answers": given})
    (folder / f"answers-{rater}.json").write_text(text)


def truthful(preference):
    """A rater who prefers the first system by `preference(item)` and passes the catch trials."""

    def score(trial) -> int:
        if trial["catch"] == "identical":
            return 0
        if trial["catch"] == "degraded":
            return 3 if trial["left"] == "degraded" else -3
        return preference(trial["item"]) * (1 if trial["right"] == "human" else -1)

    return score


@pytest.mark.parametrize(("items", "raters", "trials"), [(20, 8, 15), (7, 5, 7), (100, 80, 15), (5, 3, 1)])
def test_assignment_is_balanced(items, raters, trials):
    names = [f"i{n}" for n in range(items)]
    plan = assign(names, SYSTEMS, raters, trials, np.random.default_rng(0))
    real = [[trial for trial in of_rater if trial.catch is None] for of_rater in plan]
    times = Counter(trial.item for of_rater in real for trial in of_rater)
    assert max(times.values()) - min(times.get(name, 0) for name in names) <= 1
    left = Counter(trial.item for of_rater in real for trial in of_rater if trial.left == "human")
    assert max(abs(2 * left[name] - times[name]) for name in names) <= 3
    for whole, of_rater in zip(plan, real, strict=True):
        assert len({trial.item for trial in of_rater}) == trials == len(of_rater)
        assert abs(2 * sum(trial.left == "human" for trial in of_rater) - trials) <= 1
        assert all({trial.left, trial.right} == set(SYSTEMS) for trial in of_rater)
        assert sorted(trial.catch for trial in whole if trial.catch) == ["degraded", "identical"]
        assert whole[0].catch is None
    assert plan == assign(names, SYSTEMS, raters, trials, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"must lie in 1..{items}"):
        assign(names, SYSTEMS, raters, items + 1, np.random.default_rng(0))


def test_a_kit_is_loud_alike_and_tells_nothing(items, tmp_path):
    key = export(items, tmp_path / "test")
    assert key["study"] == "context" and key["question"].startswith("Which rendition is a more appropriate")
    page = (tmp_path / "test/kit/index.html").read_text()
    for word in (*SYSTEMS, "item-", "degraded", "</script><script>", "http:", "https:"):
        assert word not in page
    files = list((tmp_path / "test/kit/audio").iterdir())
    for file in files:
        samples, rate = soundfile.read(file)
        loudness = pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(samples)
        assert loudness == pytest.approx(-23, abs=0.1) and rate == RATE
        assert len(file.stem) == 20
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [len(trials) for trials in data["raters"]] == [6, 6]
    for trials, shown in zip(key["raters"], data["raters"], strict=True):
        for trial, on_page in zip(trials, shown, strict=True):
            assert (on_page["left"] == on_page["right"]) == (trial["catch"] == "identical")
            assert on_page["transcript"][0][1].startswith("</script>")  # all of it arrives
    seconds = soundfile.info(tmp_path / "test/kit" / data["raters"][0][0]["context"]).duration
    assert seconds == pytest.approx(2 * (0.2 + 0.3), abs=0.01)
    with pytest.raises(FileExistsError, match="answers to its kit would no longer fit"):
        export(items, tmp_path / "test")
    assert export(items, tmp_path / "other", seed=1)["kit"] != key["kit"]


def test_context_is_the_last_ninety_seconds(tmp_path):
    for name, seconds in (("h", 0.5), ("m", 0.5), ("c", 40.0)):
        tone(tmp_path / f"{name}.wav", 500, seconds=seconds, rate=8000)
    turns = [{"speaker": "anna", "text": f"Turn {i}.", "audio": "c.wav"} for i in range(4)]
    line = {"id": "a", "systems": {"human": "h.wav", "model": "m.wav"}, "context": turns}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    export(tmp_path / "items.jsonl", tmp_path / "test", raters=1, trials=1)
    page = (tmp_path / "test/kit/index.html").read_text()
    trial = json.loads(page.split('id="data">')[1].split("</script>")[0])["raters"][0][0]
    assert trial["transcript"] == [["anna", "Turn 2."], ["anna", "Turn 3."]]
    assert soundfile.info(tmp_path / "test/kit" / trial["context"]).duration == pytest.approx(2 * 40.3, abs=0.01)


def test_results_are_those_of_the_raters(items, tmp_path, capsys):
    key = export(items, tmp_path / "test", raters=4, trials=6)
    truth = {"item-0": 3, "item-1": 2, "item-2": 0, "item-3": 1, "item-4": -1, "item-5": 1}
    for rater in range(3):
        answer(key, tmp_path, rater, truthful(truth.get))
    answer(key, tmp_path, 3, lambda trial: 2)  # always the right side: fails the identical pair
    run("import", tmp_path / "test/key.json", *sorted(tmp_path.glob("answers-*")), "--json", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["cmos"]["value"] == pytest.approx(1.0)
    assert found["cmos"]["low"] < 1.0 < found["cmos"]["high"]
    assert (found["raters"], found["ratings"], found["items"], found["left_out"]) == (3, 18, 6, [4])
    assert [found[name]["value"] for name in ("win", "tie", "loss")] == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert found["win"]["low"] == pytest.approx(0.4375, abs=5e-4)  # Wilson's interval of 12 of 18
    assert (found["items_won"], found["items_lost"]) == (4, 1)
    assert found["sign_test"] == pytest.approx(2 * 6 / 32)
    assert found["alpha"] == 1.0
    assert found["unanswered"] == 0
    assert "raters 4; CMOS with them" in capsys.readouterr().out


def test_a_preference_for_one_side_is_found_and_does_not_move_the_mean(items, tmp_path):
    key = export(items, tmp_path / "test", raters=6, trials=6)
    for rater in range(6):

        def score(trial):
            return truthful(lambda item: 0)(trial) + (trial["catch"] is None)

        answer(key, tmp_path, rater, score)
    found = read_results(tmp_path / "test/key.json", sorted(tmp_path.glob("answers-*")), samples=500)
    assert found.order_bias.value == 1.0 == found.order_bias.low
    assert found.cmos.value == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(kit="other"), "answers kit 'other', the key is of"),
        (lambda a: a.update(rater=9), "is not an answer file of the listening page"),
        (lambda a: a["answers"][0].update(score=4), "is not an answer to one trial, with a score of -3..3"),
        (lambda a: a["answers"].append(a["answers"][0]), "is not an answer to one trial"),
        (lambda a: a["answers"].clear(), "1 raters answered, 1 of them failed the catch trials"),
    ],
)
def test_bad_answers_are_refused(items, tmp_path, change, message):
    key = export(items, tmp_path / "test")
    answer(key, tmp_path, 0, truthful(lambda item: 1))
    path = tmp_path / "answers-0.json"
    with pytest.raises(ValueError, match=r"answers for rater 1, as .* does; keep one of them"):
        read_results(tmp_path / "test/key.json", [path, path])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "test/key.json", [path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "systems": {"x": "h0.wav"}}', 'must be {"id": ...'),
        ('{"id": "a", "systems": {"x": "h0.wav", "y": "no.wav"}}', r"audio file .*no\.wav does not exist"),
        ('{"id": "a", "systems": {"x": "h0.wav", "degraded": "h0.wav"}}', "cannot be named 'degraded'"),
        ('{"id": "a", "systems": {"x": "h0.wav", "y": "h1.wav"}, "context": [{"text": "Hi."}]}', "has speaker, text"),
        ("", "holds no items"),
    ],
)
def test_bad_items_are_refused(items, line, message):
    path = items.parent / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        read_items(path)


def test_agreement_of_krippendorffs_own_example():
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example D: 0.849 for interval data."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    units = [[value for value in unit if value is not None] for unit in zip(a, b, c, d, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[1], [2]]) is None
    rng = np.random.default_rng(0)
    assert krippendorff_alpha(rng.normal(size=(500, 4))) == pytest.approx(0, abs=0.05)


def test_intervals_cover_the_truth_with_raters_and_items_of_their_own():
    """Ratings of 12 raters on 20 items, each with an effect of its own: single ratings would give far too narrow
    intervals."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rater, item = rng.normal(0, 0.5, 12), rng.normal(0, 0.7, 20)
        pairs = [(r, i) for r in range(12) for i in rng.choice(20, 10, replace=False)]
        ratings = [Rating(r, f"{i:02d}", 0, 0) for r, i in pairs]
        values = [0.3 + rater[r] + item[i] + rng.normal(0, 1) for r, i in pairs]
        found = two_way(ratings, values, samples=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 90 <= covered <= 99


@pytest.mark.slow
def test_raters_in_a_browser(items, tmp_path):
    """Two raters go through the page, from disk and without a network; their truth comes out of the import."""
    from playwright.sync_api import sync_playwright

    key = export(items, tmp_path / "test", raters=2, trials=2)
    score = truthful(lambda item: 2 if item in ("item-0", "item-1", "item-2") else 1)
    requests: list[str] = []
    with sync_playwright() as play:
        options = ["--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        context = browser.new_context(offline=True, accept_downloads=True)
        for rater in range(2):
            page = context.new_page()
            page.on("request", lambda request: requests.append(request.url))
            errors: list[str] = []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto((tmp_path / "test/kit/index.html").as_uri() + f"?rater={rater + 1}")
            assert page.is_disabled("#begin")
            page.click("#check button")
            page.wait_for_selector("#begin:enabled")
            page.click("#begin")
            for number, trial in enumerate(key["raters"][rater]):
                assert page.text_content("#progress") == f"Pair {number + 1} of 4"
                assert "Turn" in page.text_content("#transcript") and page.title() == "Listening test"
                assert page.is_disabled("#left button") and page.is_disabled("#right button")  # the context comes first
                page.click("#context-player button")
                page.wait_for_selector("#left button:enabled")
                assert page.is_disabled("#scale input >> nth=0")
                page.click("#left button")
                page.wait_for_selector("#left .heard:text('to the end')")
                assert page.is_disabled("#scale input >> nth=0")
                page.click("#right button")
                page.wait_for_selector("#scale input:enabled")
                assert page.is_disabled("#next")
                page.check(f"#scale input[value='{score(trial)}']")
                if number == 2:  # a reload resumes where the answers end
                    page.reload()
                    page.click("#check button")
                    page.wait_for_selector("#begin:enabled")
                    page.click("#begin")
                    for place in ("#context-player", "#left", "#right"):
                        page.click(f"{place} button")
                        page.wait_for_selector(f"{place} .heard:text('to the end')")
                    page.check(f"#scale input[value='{score(trial)}']")
                page.click("#next")
            with page.expect_download() as download:
                page.click("#save")
            download.value.save_as(tmp_path / f"answers-{rater}.json")
            assert not errors
            page.close()
        browser.close()
    assert requests and all(url.startswith(("file:", "blob:")) for url in requests)
    found = read_results(tmp_path / "test/key.json", sorted(tmp_path.glob("answers-*.json")), samples=500)
    real = [trial for trials in key["raters"] for trial in trials if trial["catch"] is None]
    expected = np.mean([2 if trial["item"] in ("item-0", "item-1", "item-2") else 1 for trial in real])
    assert found.cmos.value == pytest.approx(expected)
    assert (found.left_out, found.unanswered, found.ratings) == ([], 0, 4)
