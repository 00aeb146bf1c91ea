"""The eight pages of the lesson in words: what to look at, what to do, when it is done; and the words themselves.

A page is plain data for ``lesson.html``: ``title``, ``text`` (a word in double brackets is one of ``WORDS``), ``cards``
of the player that it shows, ``acts`` (buttons), ``todo`` (each with the events that tick it off).
"""

WORDS = {
    "noise": "random values without any pattern; it sounds like a waterfall",
    "step": "one question to the network: what is noise here? Then a little of it is taken away",
    "guess": "what the network takes the clean song to be, if it had to decide now",
    "mel": "a picture of sound: time from left to right, pitch of its parts from low to high, "
    "brightness is level in dB",
    "content": "what is sung: the words, vowels and consonants, without who sings them and how high",
    "melody": "how high is sung at each moment: F0, in Hz; the picture draws it on notes",
    "timbre": "what makes a voice this voice; here: which singer the model was told to be",
    "null": "what takes the place of an ingredient that is switched off; the model met it in training",
    "bin": "one dot of the picture: one moment and one band of pitch",
    "settled": "from this step on the guess stays within 3 dB of the end",
    "sampler": "the rule that says how to go from one step to the next",
    "cents": "hundredths of a semitone",
    "vocoder": "what makes sound of a mel; the one used here is told the melody and sings on it",
    "waveform": "the sound itself: how far the air is pushed, thousands of times in a second",
    "diffwave": "a diffusion model that works on the waveform; it needs no mel and no other network",
}


def page(id: str, title: str, text: list[str], acts: list[dict], todo: list[tuple], cards: list[str], **more) -> dict:
    """One page; ``todo`` as (sentence, event, event ...)."""
    done = [{"text": sentence, "when": list(events)} for sentence, *events in todo]
    return {"id": id, "title": title, "text": text, "acts": acts, "todo": done, "cards": cards, **more}


def sound(name: str, text: str) -> dict:
    """A button that plays one of the lesson's sounds."""
    return {"kind": "sound", "name": name, "text": text}


def switch(run: int, text: str) -> dict:
    """A button that shows and plays a run of the page's group."""
    return {"kind": "run", "run": run, "text": text}


def note(text: str) -> dict:
    """A line below the buttons."""
    return {"kind": "note", "text": text}


def pages(facts: dict) -> list[dict]:
    """The pages of a lesson.

    Args:
        facts: ``song``, ``voice``, ``steps``, ``seed`` of the main run; ``target`` (its label, or ""); ``without`` and
            ``fewer`` (labels of the runs in those groups); ``caution`` (a sentence or ""); ``wave_steps`` (steps of
            DiffWave's walk) and ``wave_text`` (what page 8 shows).

    Returns:
        All eight, in order, each as :func:`page` makes it with ``step``, where its slider begins, and what else it
        asks of the player.
    """
    n, last = facts["steps"], facts["steps"] - 1
    sounds = [sound("source", f"the song: {facts['song']}")]
    sounds += [sound("target", f"the voice: {facts['target']}")] if facts["target"] else []
    sounds += [sound("result", f"the result: {facts['voice']} sings it")]
    listened = [(f"you heard {s['text'].split(':')[0]}", f"heard:{s['name']}") for s in sounds]
    found = [
        page(
            "hear",
            "What we hear",
            [
                f"Somebody sings {facts['song']}. A model that learned how {facts['voice']} sounds sings the same: same "
                "words, same [[melody]], another [[timbre]].",
                "Nothing of the first recording is in the result. All of it was made out of [[noise]]. The next pages show "
                "how. Below you see the result as a [[mel]].",
            ],
            sounds,
            listened,
            ["guess", "pitch"],
            step=last,
            bar=False,
        ),
        page(
            "noise",
            "Noise in, song out",
            [
                "Move the slider to the left: more and more [[noise]] is mixed into the song, until nothing is left of it. "
                "That is how the model was trained: it was shown noisy songs and had to name the noise.",
                "Singing goes the other way, from left to right. It begins with noise alone and takes a little away "
                f"{n} times. *Question: where on the slider do your eyes first find lines in the snow?*",
            ],
            [],
            [
                ("you went to the noise, at the left end", "end:noise"),
                ("you went to the song, at the right end", "end:song"),
                ("you saw at least five steps", "steps:5"),
            ],
            ["seen", "number"],
            step=last,
        ),
        page(
            "one",
            "One step",
            [
                "At each [[step]] the network sees the noisy picture and names the noise in it. Take that noise away, and "
                "what is left is its [[guess]] of the clean song. It is wrong at first, so only a part of the way is gone.",
                "The formula holds with the real numbers of this step. *Move the slider: which of the numbers grow, which "
                "shrink?*",
            ],
            [],
            [
                ("you looked at three steps", "steps:3"),
                ("you heard the guess of a step (Space, or listen)", "heard:step"),
            ],
            ["seen", "guess"],
            step=n // 3,
            live="formula",
        ),
        page(
            "all",
            "All of it",
            [
                "Press listen, then move the slider while it plays: the sound goes on at the same place, as the "
                "[[guess]] of the step you are at, sung by a [[vocoder]]. The third picture "
                "shows what changed: orange got louder, blue softer.",
                "*Notice what comes first: broad patches, then the lines of the voice, then fine detail. The map at "
                "the side is the same walk: each point is a step.*",
            ],
            [
                {"kind": "against", "name": "before", "text": "what changed since the step before"},
                {"kind": "against", "name": "end", "text": "how far from the result"},
            ],
            [
                ("you listened while you moved through the steps", "heard:step", "steps:8"),
                ("you looked at both differences", "against:before", "against:end"),
            ],
            ["seen", "guess", "change", "pitch", "band", "number", "map", "curve"],
            step=n // 2,
            against="before",
        ),
        page(
            "guess",
            "Your turn: when do you recognise it?",
            [
                "The pictures are covered. Begin at the left, listen, and go right step by step. Press a button at the "
                "step where you first recognise the tune, the words, and who sings. Any order; you may change your mind. "
                "(The sound is rougher here: it is made from the picture alone. The vocoder of the other pages is told "
                "the [[melody]], which would give the tune away.)",
                "Then look. The last picture shows when each [[bin]] was [[settled]]: dark early, bright late.",
            ],
            [
                *(
                    {"kind": "guess", "name": name, "text": f"now I recognise the {name}"}
                    for name in ("tune", "words", "singer")
                ),
                {"kind": "see", "text": "show me"},
            ],
            [
                ("you listened", "heard:step"),
                ("you gave three guesses", "guess:tune", "guess:words", "guess:singer"),
                ("you compared them with the measurement", "seen:all"),
            ],
            ["guess", "change", "pitch", "curve"],
            group=4,
            step=0,
        ),
        page(
            "three",
            "Three ingredients",
            [
                "The model is told three things: the [[content]] (which words), the [[melody]] (how high) and the "
                f"[[timbre]] (who). Here each is switched off in turn: a [[null]] takes its place. Always the same "
                f"noise, seed {facts['seed']}, so nothing else differs.",
                "*Before you press: which one will you miss most? Then listen for what is left. The picture of differences "
                "compares with all three switched on.* Where the melody is off, the sound is made from the picture "
                "alone: the vocoder of the others is told the melody.",
            ],
            [switch(i, label) for i, label in enumerate(facts["without"])]
            + ([note(facts["caution"])] if facts["caution"] else []),
            [(f"you heard: {label}", f"heardrun:{i}") for i, label in enumerate(facts["without"])],
            ["guess", "change", "pitch"],
            group=1,
            step=7,
            against="run0",
        ),
        page(
            "few",
            "Few steps against many",
            [
                "Each [[step]] costs time. The same song from the same noise, by fewer steps: the [[sampler]] takes larger "
                "strides and the network has fewer chances to correct itself.",
                "*Listen to consonants and to the ends of notes: what is lost first? From how many steps on do you hear no "
                "difference any more?*",
            ],
            [switch(i, label) for i, label in enumerate(facts["fewer"])],
            [(f"you heard: {label}", f"heardrun:{i}") for i, label in enumerate(facts["fewer"])],
            ["guess", "change", "pitch", "number"],
            group=2,
            step=7,
            against="run0",
        ),
        page(
            "wave",
            "DiffWave: the same on the sound itself",
            [
                "So far a picture was made and then sung. [[DiffWave]] does the same directly on the "
                f"[[waveform]]: noise in, sound out, here in {facts['wave_steps']} steps. So you can hear the noisy "
                "signal of every step, not only the guess.",
                facts["wave_text"],
                "*Noisy steps are turned down so that your ears stay well; the page says by how much.*",
            ],
            [
                {"kind": "hear", "name": "noisy", "text": "hear the noisy signal"},
                {"kind": "hear", "name": "guess", "text": "hear the guess"},
            ],
            [
                (f"you heard {min(6, facts['wave_steps'])} steps", "heard:six"),
                ("you heard the noisy signal and the guess", "ear:noisy", "ear:guess"),
            ],
            ["wave", "seen", "guess"],
            group=3,
            step=0,
            ear="noisy",
        ),
    ]
    return found
