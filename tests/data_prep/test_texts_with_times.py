"""Times in a .txt begin turns or are an error: none is trained as speech, and no sentence is refused for one."""

import time

import pytest
from layouts import Source, text, wav

from data_prep.inputs.transcripts.labels import parse_labels
from data_prep.inputs.transcripts.times import is_name

SRT = "1\n00:00:00,100 --> 00:00:00,400\nAnn: Hi.\n\n2\n00:00:00,500 --> 00:00:00,900\nBob: Hello.\n"
HI_HELLO = [("Ann", 0.1, 0.4, "Hi."), ("Bob", 0.5, 0.9, "Hello.")]

TURNS = {
    "a time above each text": (
        "0:01\nHello\n0:05\nwelcome\nall\n",
        [("0", 1, 5, "Hello"), ("0", 5, None, "welcome all")],
    ),
    "names and times above the texts": (
        "Ann Lee  0:03\nHello.\n\nBob  10:05\nHi.\nBye now.\n",
        [("Ann Lee", 3, 605, "Hello."), ("Bob", 605, None, "Hi. Bye now.")],
    ),
    "times in parentheses": (
        "Speaker 1 (00:03)\nHello.\nSpeaker 2 (1:00:05)\nHi.\n",
        [("Speaker 1", 3, 3605, "Hello."), ("Speaker 2", 3605, None, "Hi.")],
    ),
    "names, colons and times": ("Ann: (00:03)\nHello.\n", [("Ann", 3, None, "Hello.")]),
    "name and time before the text": (
        "Ann (00:03): Hello.\nBob [00:05]: Hi.\n",
        [("Ann", 3, 5, "Hello."), ("Bob", 5, None, "Hi.")],
    ),
    "times and names above the texts": (
        "[00:03] Ann\nHello.\n[00:05] Bob\nHi.\n[00:07] Ann\nBye.\n[00:09] Bob\nBye.\n",
        [("Ann", 3, 5, "Hello."), ("Bob", 5, 7, "Hi."), ("Ann", 7, 9, "Bye."), ("Bob", 9, None, "Bye.")],
    ),
    "more lines without a time than with one": (
        "[00:01] Hello\nthere\nmy\nfriend.\n[00:09] Bye\nthen,\nAnn.\n",
        [("0", 1, 9, "Hello there my friend."), ("0", 9, None, "Bye then, Ann.")],
    ),
    "spans with lines that go on": (
        "0.5 3.3 Hello\nthere\nmy\nfriend.\n4.0 5.5 Bye.\n",
        [("0", 0.5, 3.3, "Hello there my friend."), ("0", 4, 5.5, "Bye.")],
    ),
    "one line with a time": ("[00:00:01] A: hi\n", [("A", 1, None, "hi")]),
    "names and times of day above half of the lines": (
        "Ann 10:05\nHi.\nBob 10:09\nHo.\n",
        [("Ann", 605, 609, "Hi."), ("Bob", 609, None, "Ho.")],
    ),
    "times of day before all lines": (
        "10:05 Hi there\n10:09 John 3:16\n",
        [("0", 605, 609, "Hi there"), ("0", 609, None, "John 3:16")],
    ),
    "one name and time above a text": ("Ann Lee  0:03\nHello.\n", [("Ann Lee", 3, None, "Hello.")]),
    "names without upper case": (
        "王芳 00:03\n你好。\n李明 00:05\n今天讲第一课、请看书。\n",
        [("王芳", 3, 5, "你好。"), ("李明", 5, None, "今天讲第一课、请看书。")],
    ),
    "sentences without upper case": (
        "[0:00] 今天讲第一课、请看书。\n好。\n[0:05] 今天讲第一课、请看书。\n好。\n",
        [("0", 0, 5, "今天讲第一课、请看书。 好。"), ("0", 5, None, "今天讲第一课、请看书。 好。")],
    ),
    "decimal commas between tabs": (
        "0,100\t10,400\tHi.\n10,500\t20,900\tHello.\n",
        [("0", 0.1, 10.4, "Hi."), ("0", 10.5, 20.9, "Hello.")],
    ),
    "decimal commas of times": ("[00:00:00,500] Hi.\n", [("0", 0.5, None, "Hi.")]),
    "one time above a text": ("0:01\nHello.\n", [("0", 1, None, "Hello.")]),
    "one line with two numbers": ("0.5 3.3 Hi.\n", [("0", 0.5, 3.3, "Hi.")]),
    "lines with a hash": ("[00:01] Hi.\n#MeToo began.\n", [("0", 1, None, "Hi. #MeToo began.")]),
    "one line with two times": ("[0:01] - [0:05] hi\n", [("0", 1, 5, "hi")]),
    "one line with a label": ("A: hello there\n", [("A", 0, None, "hello there")]),
    "two at a time": (
        "[00:01] A: hi\n[00:01] B: ho\n[00:03] A: he\n",
        [("A", 1, 3, "hi"), ("B", 1, 3, "ho"), ("A", 3, None, "he")],
    ),
    "SRT": (SRT, HI_HELLO),
    "WebVTT": ("WEBVTT\n\n" + SRT.replace(",", "."), HI_HELLO),
    "WebVTT without its first line": (
        "00:00.100 --> 00:00.400\nAnn: Hi.\n\n00:00.500 --> 00:00.900\nBob: Hello.\n",
        HI_HELLO,
    ),
}


@pytest.mark.parametrize("case", TURNS)
def test_times_of_a_txt_begin_its_turns(tmp_path, case):
    content, turns = TURNS[case]
    wav(tmp_path / "x.wav"), text(tmp_path / "x.txt", content)
    source = Source(tmp_path)
    assert source.said == {"x.wav": turns} and not source.rejected


REFUSED = {
    "Hello there [00:03]\n": "'Hello there [00:03]' ends in a time; put the time before the text",
    "hello there 0:03\nhow are you 0:05\n": "ends in a time",
    "Hello [00:03] there\n": "has a time within its text",
    "10:30 is when we meet.\n": "may be a time or a word, '10:30 is when we meet.'; write [0:10:30]",
    "Lunch 12:30\nis served\n": "may be a time or a word",
    "0:01 hi there\n": "may be a time or a word, '0:01 hi there'; write [0:10:30]",
    "0:45 was the time on the clock.\n": "may be a time or a word",
    "1:02:03 was his time\n": "may be a time or a word",
    "(1:30) was odd\n": "may be a time or a word",
    "He won.\n1:02:03 was his time.\n": "may be a time or a word, '1:02:03 was his time.'",
    "10:30 is when we meet.\nIt was a great day.\n11:45 is when we leave.\n": "may be a time or a word",
    "1.5-2.5 metres is long.\n": "may be a time or a word",
    "0:01 to 0:05 hi\n": "may be a time or a word",
    "[0:01] " * 2000 + "hi\n": "structure that is not known",
    "[0:01] we [0:03] go\n": "structure that is not known",
    "[0:01] we go 0:03\n": "structure that is not known",
    "[00:00] Yeah\nI think so.\n[00:04] Right\nThat's it.\n[00:08] Yeah\nGood.\n": "may have names behind the times",
    "[10:30 AM] Ann: hi\n": "structure that is not known",
    "0:01,0:05,Hello\n0:06,0:09,Bye\n": "structure that is not known",
    "00:00:01:12 Hello\n00:00:03:02 Bye\n": "the time 00:00:01:12 has 4 parts; write it as h:mm:ss.s",
    "0:05\nHello\n0:01\nBye\n": "not in order",
    "Our meeting\n0:01\nHello\n": "begins without; remove what is before them",
    "0:01\n0:05\n": "have times, but no text",
    "00:00:00\nAnn: Hello\nBob: Hi\n": "several speakers under one time, such as 'Bob: Hi'; give each its time",
    "[00:03] Ann\nHello.\n[00:05] Bob\nHi.\n": "may have names behind the times, such as 'Ann'; put a colon",
    "Ann 0:03\nHello\n[0:05] Hi\n": "give all times a name",
    "1\n0:01 --> 0:02\nHi\n": "it looks like subtitles, but holds no cues",
    SRT.replace("00:00:00,500", "0:00,500"): "has a time that is not read",
    "A: hi\nso\nand\nthen\nB: ho\n": "structure that is not known, such as 'A: hi'",
    "# by Ann\nSo\nwhat\nnow\n": "it has a comment, '# by Ann'",
}


@pytest.mark.parametrize("content", REFUSED)
def test_times_that_cannot_be_read_are_refused(tmp_path, content):
    wav(tmp_path / "x.wav"), text(tmp_path / "x.txt", content)
    source = Source(tmp_path)
    assert source.reasons == {"x.wav": "bad_annotation"} and not source.said
    assert REFUSED[content] in source.rejected["x.wav"].message


SENTENCES = [
    "We meet at 10:30\n",
    "We meet at 10:30.\nSee you there.\n",
    "We meet at 10:30\nSee you there.\n",
    "At 10:30 we meet, at 11:45 we eat.\n",
    "10:30 a.m. is when we meet.\n",
    "8:30 Uhr ist zu früh.\n",
    "We will all meet at\n10:30 in the hall.\n",
    "The early train (10:30) is late.\n",
    "It ended 3:2, and the odds were 10:1\n",
    "Psalm 23:10 says so.\n",
    "1984 was a year.\nIt was cold.\n",
    "We meet at\n10:30\n",
    "We meet tomorrow.\n10:30 sharp, in the hall.\n",
    "We leave.\n10:30 is early.\nIt rains.\nWe stay.\n11:45 is late.\n",
    "He ran it in\n1:02:03 and won.\n",
    "John 3:16\n",
    "New York 10:30\n",
    "12:00 to 13:00 is lunch\n",
    "10,000-20,000 people came to the march.\n",
    "1,000 2,000 are numbers\n",
    "#1 is the best\n",
    "#MeToo began years ago.\nIt went on.\n",
    "我们明天见 10:30\n",
    "今天的会议改到 10:30\n请大家准时。\n",
]


@pytest.mark.parametrize("content", SENTENCES)
def test_a_time_of_day_in_a_sentence_is_text(tmp_path, content):
    wav(tmp_path / "x.wav"), text(tmp_path / "x.txt", content)
    assert Source(tmp_path).said == {"x.wav": [("0", 0, None, " ".join(content.split()))]}


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("Ann Lee", True),
        ("Speaker 1", True),
        ("Анна", True),
        ("王芳", True),
        ("عبد الله", True),
        ("", False),
        ("ann", False),
        ("'tis", False),
        ("Анна и Боб", False),
        ("Ann?", False),
        ("我们今天讲第一课", False),
        ("好。", False),
        ("نلتقي غدا في المدرسة", False),
    ],
)
def test_names_are_short_and_in_upper_case_where_there_is_one(said, named):
    assert is_name(said) == named


def test_a_word_and_a_colon_at_the_start_are_kept_with_a_remark(tmp_path):
    for name, said in (("a", "Ann: hello there.\n"), ("b", "Hello.\n")):
        wav(tmp_path / f"{name}.wav"), text(tmp_path / f"{name}.txt", said)
    source = Source(tmp_path)
    assert source.said["a.wav"] == [("0", 0, None, "Ann: hello there.")]
    ((remark, names),) = source.notes.remarks.items()
    assert "begin with a word and a colon" in remark and names == ["a.wav"]


@pytest.mark.parametrize("content", ["[00:01] hi\n" * 20_000, f"a{' ' * 50_000}b\n", "so (we) go " * 50_000])
def test_long_texts_take_no_long_time(content):
    """Of a second; a quadratic search would take minutes."""
    before = time.process_time()
    parse_labels(content)
    assert time.process_time() - before < 10
