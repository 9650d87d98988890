"""Text of a turn to ids: the Llama-3 layout on a small byte-level BPE, and the built-in byte tokenizer."""

import json
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from csm.config import TokenizerConfig, TokenizerKind
from csm.text import ByteTokenizer, HFTokenizer, load_saved_tokenizer, load_tokenizer

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TEXTS = ["This is a test sentence.", "¿Qué tal? 你好 🙂", "", " two  spaces ", f"he typed {EOS} and {BOS}[1]"]


def llama_like(bos: str = BOS, eos: str = EOS) -> Tokenizer:
    """Small byte-level BPE with Llama-3's specials, which like the original adds BOS by itself, but no EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["this is a test sentence of the test [0] [1]"] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (bos, eos)])
    bos_id = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    tokenizer.enable_truncation(4)  # what somebody left in the file must not shorten a transcript
    return tokenizer


@pytest.fixture
def source(tmp_path):
    """A directory as transformers saves one."""
    llama_like().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": BOS, "__type": "AddedToken"}, "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_a_turn_is_bos_bracketed_speaker_text_eos(source, text):
    tokenizer = HFTokenizer.load(source)
    ids = tokenizer.encode_turn(text, 0)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids[1:-1])  # typed names of specials are plain text
    reference = llama_like()
    assert reference.decode(ids[1:-1]) == f"[0]{text}"
    assert ids[0] == reference.token_to_id(BOS) and ids[-1] == reference.token_to_id(EOS)
    assert max(ids) < tokenizer.vocab_size == reference.get_vocab_size()


def test_plain_text_gets_the_ids_of_the_tokenizer_itself(source):
    reference = llama_like()
    reference.no_truncation()
    expected = reference.encode("[7]This is a test sentence.", add_special_tokens=False).ids
    assert HFTokenizer.load(source).encode_turn("This is a test sentence.", 7)[1:-1] == expected


def test_directory_and_lone_file_are_the_same_tokenizer(source):
    from_directory, from_file = HFTokenizer.load(source), HFTokenizer.load(source / "tokenizer.json")
    (source / "tokenizer_config.json").unlink()
    without_config = HFTokenizer.load(source / "tokenizer.json")  # BOS and EOS known by their usual names
    assert from_directory.identity == from_file.identity == without_config.identity
    assert without_config.encode_turn("test", 1) == from_directory.encode_turn("test", 1)


def test_saved_tokenizer_is_complete_and_transformers_reads_it(source, tmp_path):
    tokenizer = HFTokenizer.load(source)
    tokenizer.save(tmp_path / "saved" / "deep")
    for file in source.glob("*.json"):
        file.unlink()
    back = load_saved_tokenizer(tmp_path / "saved" / "deep")
    other = AutoTokenizer.from_pretrained(tmp_path / "saved" / "deep")
    assert (back.identity, back.vocab_size) == (tokenizer.identity, tokenizer.vocab_size)
    assert (other.bos_token_id, other.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for text in TEXTS:
        assert back.encode_turn(text, 3) == tokenizer.encode_turn(text, 3)
        plain = other(f"[3]{text}", add_special_tokens=False, split_special_tokens=True).input_ids
        assert plain == tokenizer.encode_turn(text, 3)[1:-1]


def test_copies_in_other_processes_give_the_same_ids(source):
    tokenizer = HFTokenizer.load(source)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode_turn(t, 0) for t in TEXTS] == [tokenizer.encode_turn(t, 0) for t in TEXTS]


def test_identity_tells_tokenizers_apart(source, tmp_path):
    llama_like("<s>", "</s>").save(str(tmp_path / "other.json"))
    found = {HFTokenizer.load(source).identity, HFTokenizer.load(tmp_path / "other.json").identity}
    assert len(found | {ByteTokenizer().identity}) == 3


def test_byte_tokenizer(tmp_path):
    tokenizer = load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, path=None, vocab_size=258))
    assert tokenizer.encode_turn("hé", 0) == [256, *"[0]hé".encode(), 257]
    for text in TEXTS:
        assert bytes(tokenizer.encode_turn(text, 12)[1:-1]).decode() == f"[12]{text}"
    tokenizer.save(tmp_path / "tokenizer")
    back = load_saved_tokenizer(tmp_path / "tokenizer")
    assert isinstance(back, ByteTokenizer) and back.identity == tokenizer.identity


def test_a_tokenizer_without_bos_or_eos_is_refused(tmp_path):
    llama_like("<begin>", "<end>").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no BOS and EOS token"):
        HFTokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>", "eos_token": "<end>"}')
    assert HFTokenizer.load(tmp_path).eos_id == HFTokenizer.load(tmp_path).vocab_size - 1


@pytest.mark.parametrize("first", ["<start>", BOS], ids=["both", "end alone"])
def test_the_template_says_what_begins_and_ends_a_turn(tmp_path, first):
    """Before tokenizer_config.json, which names other tokens here; alone or after another processor, as in Llama 3."""
    tokenizer = llama_like()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<start>", "<stop>")])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS}))
    around = {name: tokenizer.token_to_id(name) for name in ("<start>", "<stop>")}
    single = "$A <stop>" if first == BOS else "<start> $A <stop>"
    template = processors.TemplateProcessing(single=single, special_tokens=list(around.items()))
    for processor in (template, processors.Sequence([processors.ByteLevel(trim_offsets=True), template])):
        tokenizer.post_processor = processor
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        loaded = HFTokenizer.load(tmp_path)
        assert (loaded.bos, loaded.eos) == (first, "<stop>")
        if first == "<start>":
            assert loaded.encode_turn("test", 1) == tokenizer.encode("[1]test").ids
    # A model that was trained with others keeps them.
    trained = HFTokenizer(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), BOS, EOS)
    trained.save(tmp_path / "saved")
    saved = HFTokenizer.load(tmp_path / "saved")
    assert (saved.bos, saved.eos, saved.identity) == (BOS, EOS, trained.identity)
    # So does one that was saved before the prompt was saved with it.
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    (tmp_path / "saved" / "tokenizer_config.json").write_text(
        json.dumps({k: config[k] for k in ("bos_token", "eos_token")})
    )
    assert load_saved_tokenizer(tmp_path / "saved").identity == trained.identity


def test_names_that_the_vocabulary_lacks_are_nobodys(tmp_path):
    """The template's give way to the configuration's, and half a pair to usual names that agree with it."""
    tokenizer = llama_like()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<zz> $A <yy>", special_tokens=[("<zz>", 1), ("<yy>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    loaded = HFTokenizer.load(tmp_path)
    assert (loaded.bos, loaded.eos) == ("<s>", "</s>")
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = HFTokenizer.load(tmp_path)
    assert (loaded.bos, loaded.eos) == ("<s>", "</s>")  # though Llama's pair is there as well


def test_transformers_keeps_the_leading_space_of_a_saved_tokenizer(tmp_path):
    """It switches it off without an entry in tokenizer_config.json, which others' files need not have."""
    tokenizer = llama_like()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = HFTokenizer.load(tmp_path)
    loaded.save(tmp_path / "saved")
    found = AutoTokenizer.from_pretrained(tmp_path / "saved").encode("test", add_special_tokens=False)
    assert found == loaded.encode("test") == loaded.encode(" test")


def test_unreachable_or_unreadable_tokenizers_say_how_to_go_on(source, tmp_path, hub_cache):
    with pytest.raises(FileNotFoundError, match=r"give tokenizer\.path=PATH or use tokenizer=bytes") as caught:
        load_tokenizer(TokenizerConfig(path="nobody/no-such-tokenizer"))
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        HFTokenizer.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_saved_tokenizer(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"needs tokenizer\.path"):
        load_tokenizer(TokenizerConfig(path=None))
    size = llama_like().get_vocab_size()
    with pytest.raises(ValueError, match=rf"has {size} ids, more than tokenizer\.vocab_size={size - 1}"):
        load_tokenizer(TokenizerConfig(path=str(source), vocab_size=size - 1))
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        HFTokenizer.load(source)


def test_a_prompt_is_saved_with_its_tokenizer(source, tmp_path):
    spaced = HFTokenizer.load(source, "[{speaker}] {text}")
    plain = HFTokenizer.load(source)
    spaced.save(tmp_path / "hf")
    assert load_saved_tokenizer(tmp_path / "hf").encode_turn(" test", 2) == spaced.encode_turn("test", 2)
    assert spaced.encode_turn("test", 2)[1:-1] == plain.encode("[2] test") != plain.encode("[2]test")
    assert load_saved_tokenizer(tmp_path / "hf").identity == spaced.identity != plain.identity
    assert load_tokenizer(TokenizerConfig(path=str(tmp_path / "hf"))).prompt == spaced.prompt
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").bos_token_id == spaced.bos_id
    tagged = load_tokenizer(TokenizerConfig(kind=TokenizerKind.bytes, prompt="<{speaker}>{text}", vocab_size=258))
    tagged.save(tmp_path / "bytes")
    back = load_saved_tokenizer(tmp_path / "bytes")
    assert bytes(back.encode_turn(" {x}", 4)[1:-1]) == b"<4> {x}" and back.identity == tagged.identity
    assert back.identity != ByteTokenizer().identity


@pytest.mark.parametrize(
    "prompt", ["[{speaker}]", "{text}", "{text} [{speaker}]", "[{speaker}] {text} {text}", "[{}{text}"]
)
def test_what_is_no_prompt_is_refused(source, prompt):
    with pytest.raises(ValueError, match=r"must name \{speaker\} and, at its end, \{text\}"):
        HFTokenizer.load(source, prompt)
