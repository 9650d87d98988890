"""`python evaluate.py`, from a model directory to a report."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from csm import load_model
from csm.codec.base import hash_tensors
from csm.compose import EVALUATE
from csm.config import AsrKind, EvalConfig, EvaluateConfig, SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.compare_forced import read_conversations
from csm.evaluation.intrinsic import intrinsic_scores
from csm.evaluation.listening.command import main as listening
from csm.evaluation.listening.kit import read_items
from csm.evaluation.run import evaluate
from csm.formats.open import open_checkpoint
from csm.programs import print_headline

ROOT = Path(__file__).parents[2]


def request(checkpoint: Path, output: Path, **options) -> EvaluateConfig:
    settings = {
        "name": "test",
        "split": "val",
        "speaker": 0,
        "max_prompts": 2,
        "max_audio_seconds": 0.8,
        "asr": AsrKind.faster_whisper,
        "speaker_model_kind": SpeakerKind.resemblyzer,
        "bootstrap_samples": 50,
    }
    return EvaluateConfig(checkpoint=str(checkpoint), output=str(output), eval=EvalConfig(**settings | options))


@pytest.fixture(scope="module")
def report(checkpoint, tmp_path_factory) -> Path:
    return evaluate(
        request(checkpoint, tmp_path_factory.mktemp("out") / "report", seeds=[0, 5], intrinsic_split="test")
    )


def test_every_prompt_has_all_three_systems(report, speech):
    rows = [json.loads(line) for line in (report / "utterances.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["system"] != "control"]
    found = sorted((row["text"], row["system"], row["seed"]) for row in rows)
    texts = [turn.text for turn in speech["recorded"] if turn.speaker == 0]
    assert found == sorted(
        (text, system, seed)
        for text in texts
        for system, seed in (("ground_truth", None), ("codec_resynthesis", None), ("model", 0), ("model", 5))
    )
    for row in rows:
        assert row["hypothesis"] is not None
        assert (report / row["audio"]).is_file() or "empty" in row["flags"]


def test_judges_understand_the_recordings_and_not_the_untrained_model(report):
    systems = json.loads((report / "results.json").read_text())["systems"]
    assert systems["ground_truth"]["metrics"]["wer_corpus"]["value"] < 0.1
    assert systems["model"]["metrics"]["wer_corpus"]["value"] > 0.7
    assert systems["codec_resynthesis"]["metrics"]["cosine_recording"]["items"] == 2
    assert systems["model"]["expected"] == systems["model"]["scored"] == 4
    # 0.8 s are 10 frames: an untrained model does not stop by itself in time.
    assert systems["model"]["failures"]["runaway"] > 0
    # The control holds the same transcripts against other texts.
    assert systems["control"]["metrics"]["wer_corpus"]["value"] > 0.7


def test_report_says_where_its_numbers_come_from(report, checkpoint, dataset_path):
    results = json.loads((report / "results.json").read_text())
    facts = results["provenance"]
    assert facts["checkpoint"]["weights_hash"] == hash_tensors(load_model(checkpoint).state_dict())
    assert facts["checkpoint"]["layout"] == "native"
    assert facts["checkpoint"]["codec"]["codebook_size"] == 23
    assert (facts["prompts"]["dataset"], facts["prompts"]["split"]) == (str(dataset_path), "val")
    assert facts["sampling"] | {"temperature": 0.9, "topk": 50, "seeds": [0, 5]} == facts["sampling"]
    assert "tiny.en" in facts["recognizer"]["name"] and facts["speaker_embedder"]["name"] == "resemblyzer"
    assert set(results["model_by_seed"]) == {"0", "5"}
    assert "split 'test' holds no frame to predict" in results["teacher_forced"]["not_run"]
    assert "not run: " + results["teacher_forced"]["not_run"].split("'")[0] in (report / "report.html").read_text()
    assert not any("prompts were in the training data" in note for note in results["notes"])
    assert "Training data: 0 of 2 texts and 0 of 2 groups" in results["notes"][0]


def test_intrinsic_suite_reports_what_is_predicted_without_speech(checkpoint, dataset_path, tmp_path):
    options = EvalConfig("intrinsic", suite="intrinsic", intrinsic_split="train", bootstrap_samples=50)
    cfg = EvaluateConfig(checkpoint=str(checkpoint), output=str(tmp_path / "report"), eval=options)
    folder = evaluate(cfg)
    results = json.loads((folder / "results.json").read_text())
    found = results["teacher_forced"]
    dataset, model = ShardedDataset(dataset_path), load_model(checkpoint)
    scores = intrinsic_scores(
        model, dataset, "train", open_checkpoint(str(checkpoint), None, None).read_tokenizer(), 50
    )
    assert found["loss"] == pytest.approx(asdict(scores.loss), abs=1e-6) and found["frames"] == scores.frames
    assert len(found["codebooks"]) == 5 and found["ends"]["auc"] == pytest.approx(scores.ends.auc)
    gain = found["context_gain"]
    assert list(gain) == ["none", "shuffled", "swapped"] and gain["none"]["loss"]["items"] == 3
    assert results["systems"] == {} and results["protocol"]["judges"]["recognizer"] == {"not run": "nothing is spoken"}
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert html.count("<polyline") == 1 and "Loss by codebook" in html and html.count("<script>") == 1
    loss = f"{scores.codebooks[4].nats.value:.3f}"
    assert f'<th scope="row">c4</th><td class="figure">{loss}' in html and "against no context" in markdown
    assert "sums" not in found and len(read_conversations(folder)) == found["conversations"]
    print_headline(folder)
    evaluate(cfg)  # from the folder's stages
    assert json.loads((folder / "results.json").read_text())["teacher_forced"] == found
    cfg.eval.intrinsic_split = "test"
    with pytest.raises(ValueError, match="split 'test' holds no conversation"):
        evaluate(cfg)


def test_report_gives_the_items_of_a_listening_test(report, tmp_path, capsys):
    listening(["items", str(report), str(tmp_path / "items.jsonl"), "--seed", "5"])
    items = read_items(tmp_path / "items.jsonl")
    rows = [json.loads(line) for line in (report / "utterances.jsonl").read_text().splitlines()]
    audio = {(row["prompt"], row["system"], row["seed"]): row["audio"] for row in rows}
    spoken = [prompt for prompt, system, seed in audio if (system, seed) == ("model", 5)]
    heard = [prompt for prompt in spoken if audio[prompt, "model", 5]]
    assert sorted(item.id for item in items) == sorted(heard)
    for item in items:
        expected = {"ground_truth": audio[item.id, "ground_truth", None], "model": audio[item.id, "model", 5]}
        assert {name: path.resolve() for name, path in item.systems.items()} == {
            name: (report / path).resolve() for name, path in expected.items()
        }
    assert f"{len(items)} items, of ground_truth and model" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no prompt has audio of both codec_8 and the model"):
        listening(["items", str(report), str(tmp_path / "items.jsonl"), "--against", "codec_8"])


@pytest.mark.slow
def test_same_request_gives_the_same_numbers_and_replaces_the_report(checkpoint, tmp_path):
    results = []
    for _ in range(2):
        folder = evaluate(request(checkpoint, tmp_path / "report", split="train", max_prompts=1, seeds=[4]))
        results.append(json.loads((folder / "results.json").read_text()))
    assert results[0]["systems"] == results[1]["systems"]
    assert results[0]["overlap"]["texts"] == results[0]["overlap"]["groups"] == 1
    assert "These prompts were in the training data" in results[0]["notes"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("stored", [list, ", ".join], ids=["list", "joined"])
def test_prompts_after_training_on_a_mixture(checkpoint, dataset_path, tmp_path, hub_cache, stored):
    """Of the datasets named in the checkpoint, the first that is here is asked; exports once joined their paths."""
    model = shutil.copytree(checkpoint, tmp_path / "export")
    config = json.loads((model / "config.json").read_text())
    config["training"]["data"] = stored(["s3://elsewhere/calls", str(dataset_path)])
    (model / "config.json").write_text(json.dumps(config))
    options = {"speaker_model": "none", "speaker_model_kind": SpeakerKind.wavlm, "asr_model": "none"}
    folder = evaluate(request(model, tmp_path / "report", split="train", max_prompts=1, **options))
    results = json.loads((folder / "results.json").read_text())
    assert results["provenance"]["prompts"]["dataset"] == str(dataset_path)
    assert results["notes"][0].startswith("These prompts were in the training data")
    assert results["notes"][1].startswith("The model was trained on 2 datasets; all prompts are from")


def test_judges_that_cannot_run_are_named_and_the_rest_is_done(checkpoint, tmp_path, hub_cache, capsys):
    options = {"speaker_model": "no-such-owner/no-such-model", "speaker_model_kind": SpeakerKind.wavlm}
    folder = evaluate(request(checkpoint, tmp_path / "report", max_prompts=1, asr_model="no-such-folder", **options))
    metrics = json.loads((folder / "results.json").read_text())["systems"]["model"]["metrics"]
    assert metrics["wer_corpus"]["not_run"].startswith("no-such-folder is not a CTranslate2")
    assert metrics["cosine_recording"]["not_run"].startswith("no-such-owner/no-such-model")
    assert "not run: no-such-folder" in capsys.readouterr().err


def test_folder_with_other_content_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not an evaluation report; choose another folder"):
        evaluate(request(checkpoint, tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0, 1], "temperature": 0.0}, "greedy: every seed gives the same speech"),
        ({"seeds": []}, r"eval\.seeds must be one or more"),
        ({"max_prompts": 0}, r"eval\.max_prompts must be at least 1"),
        ({"max_audio_seconds": 0.0}, r"eval\.max_audio_seconds must be positive"),
        ({"max_audio_seconds": 60.0}, r"lower eval\.max_audio_seconds"),
        ({"language": "Klingon"}, "Klingon"),
        ({"dataset": "nowhere"}, r"dataset nowhere is not here; give eval\.dataset"),
    ],
)
def test_impossible_requests_are_refused(checkpoint, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(request(checkpoint, tmp_path / "report", **options))
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_codec_of_another_dataset_is_one_line_and_exit_code_2(checkpoint, dataset_path, tmp_path):
    other = shutil.copytree(dataset_path, tmp_path / "other")
    info = json.loads((other / "dataset.json").read_text())
    info["codec"]["weights_hash"] = "0123456789abcdef"
    (other / "dataset.json").write_text(json.dumps(info))
    command = [sys.executable, "evaluate.py", f"checkpoint={checkpoint}", "eval=quickstart", f"eval.dataset={other}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "different codecs" in done.stderr and "0123456789abcdef" in done.stderr and str(other) in done.stderr


@pytest.mark.parametrize("name", ["default", "quickstart"])
def test_configs_compose_to_typed_options(name):
    settings = EVALUATE.options(compose_evaluate([f"eval={name}", "checkpoint=runs/a"]))
    assert isinstance(settings, EvaluateConfig)
    assert settings.eval.name == name


@pytest.mark.parametrize("override", ["eval.max_prompt=3", "eval.asr=parrot", "eval.topk=many"])
def test_misspelled_options_fail_by_name(override):
    with pytest.raises(ConfigCompositionException) as error:
        compose_evaluate([override])
    assert override.split("=")[0].split(".")[1] in f"{error.value} {error.value.__cause__}"


def compose_evaluate(overrides: list[str]):
    return EVALUATE.compose(overrides)
