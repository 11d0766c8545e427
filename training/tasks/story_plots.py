"""The plots of the built-in stories, and the teller that fills them in."""

import random
import re
from collections.abc import Callable, Iterable

from training.tasks.story_words import (
    ADULTS,
    ANIMALS,
    CATS,
    CHILDREN,
    COLOURS,
    DAYS,
    FEARS,
    FOODS,
    FRAGILE,
    GIFTS,
    HIDEOUTS,
    LANDMARKS,
    LURES,
    MONSTERS,
    NEIGHBOURS,
    NOISES,
    OUTINGS,
    PLACES,
    PLANTS,
    PRIZES,
    STRAYS,
    TOPICS,
    TOYS,
    TRAITS,
    TROUBLES,
    Person,
)


def _a(words: str) -> str:
    return f"an {words}" if words[0].lower() in "aeiou" else f"a {words}"


class Teller:
    """Draws the words of one story and fills in a plot.

    A plot is a text with blank lines between paragraphs. `[one|another]` becomes one of the two, `[?one|another]` one
    of them or nothing. `<Tom: Oh no! / It broke.>` becomes a speech with its tag before it, after it or at the slash;
    `<Tom shouted: ...>` sets the verb.
    """

    def __init__(self, seed: str):
        # Python guarantees the same values in every version only for `random()`.
        self.random = random.Random(seed).random
        self.length = 0.1 + 0.6 * self.random()

    def pick(self, *options):
        return options[int(self.random() * len(options))]

    def some(self, options: Iterable, count: int) -> list:
        """Draws `count` different options in random order."""
        rest = list(options)
        return [rest.pop(int(self.random() * len(rest))) for _ in range(count)]

    def third(self, *taken: Person) -> Person:
        """Draws another person of the same sort as `taken`: a story has either children or animals."""
        crowd = CHILDREN if taken[0] in CHILDREN else ANIMALS
        while (one := self.pick(*crowd)) in taken:
            pass
        return one

    def ask(self, kind: str, answer: Person | str, *wrong: Person | str) -> str:
        """Marks `answer` as a probe; the preceding text rules out the candidates `wrong`."""
        return "\x00" + "\x01".join((kind, str(answer), *map(str, wrong))) + "\x02"

    def by(self, who: Person, *others: Person) -> str:
        """Marks the speaker of a speech that only `who` can have made."""
        return self.ask("speaker", who, *others)

    def intro(self, who: Person) -> str:
        someone = _a(f"{self.pick(*TRAITS)} {who.kind}")
        return f"""[Once upon a time, there was {someone} named {who}.|There once was {someone} called {who}.|{who} was
        {someone}.|In [a small|an old|a little] house [by the sea|near the woods|on a hill|near a river] lived
        {someone} named {who}.]"""

    def day(self) -> str:
        return self.pick(*DAYS)

    def fill(self, text: str) -> str:
        """Chooses the alternatives of a plot and tags its speeches; the probes stay marked."""
        while "[" in text:
            text = CHOICE.sub(self._choose, text)
        text = SPEECH.sub(self._say, text)
        return "\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))

    def _choose(self, choice: re.Match) -> str:
        text = choice[1]
        if text.startswith("?"):
            text = text[1:] if self.random() < self.length else ""
        return self.pick(*text.split("|"))

    def _say(self, speech: re.Match) -> str:
        who, verb, parts = speech[1], speech[2], speech[3].split("/")
        parts = [" ".join(part.split()) for part in parts]
        where = self.pick("before", "after", "between") if len(parts) > 1 else self.pick("before", "after", "after")
        start = parts[:1] if where == "between" else parts
        tagged = start[0] if where == "before" else start[-1]
        verb = verb or {"?": "asked", "!": self.pick("said", "said", "cried")}.get(tagged[-1], "said")
        if where == "before":
            return f'{who[0].upper()}{who[1:]} {verb}, "{" ".join(parts)}"'
        said = " ".join(start)
        said = said[:-1] + "," if said.endswith(".") else said
        tag = f"{who} {verb}" if who in ("he", "she") or self.random() < 0.4 else f"{verb} {who}"
        return f'"{said}" {tag}.' + (f' "{" ".join(parts[1:])}"' if where == "between" else "")


CHOICE = re.compile(r"\[([^\[\]]*)\]")
SPEECH = re.compile(r"<(\w+)(?:\s+(\w+))?:\s([^>]*)>")
MARK = re.compile("\x00([^\x02]*)\x02")


def lost(t: Teller, h: Person, f: Person, n: str) -> str:
    """A toy is put down somewhere, forgotten, and found there again."""
    where, ground, spots = t.pick(*PLACES)
    left, other = t.some(spots, 2)
    c, d = t.some(COLOURS, 2)
    adult = t.pick(*ADULTS)
    bug = t.pick("butterfly", "dragonfly", "bird", "rabbit")
    clue, memory = t.pick(
        (
            f"""First {h.he} sat by the {other} and ate an apple. Then a {bug} came by. {h} put the {n} down by the
            {left} and ran after the {bug}, but it was too fast.""",
            f"I wanted to catch the {bug}.",
        ),
        (
            f"""{h.He} put the {n} down by the {left}, because {h.he} wanted to pick some flowers. {h.He} picked one
            here and one there, all the way to the {other}.""",
            f"I needed both {h.hand}s for the flowers.",
        ),
        (
            f"""It was hot, and soon {h.he} was tired. {h.He} put the {n} down by the {left} and drank some water. Then
            {h.he} saw a {bug} over by the {other} and ran to look at it.""",
            "I was hot and wanted a drink.",
        ),
        (
            f"""{h.He} played by the {other} for a long time. Then {h.he} played by the {left}. {h.He} put the {n} down
            there to look at some ants, and {h.he} followed the ants a long way.""",
            "I was looking at the ants.",
        ),
    )
    return f"""
    [{t.intro(h)} {h.He} had {_a(c)} {n}, and {h.he} loved to {TOYS[n]}.|{h.title} had {_a(c)} {n}. It was a present
    from {h.his} {adult.kind}, and {h.he} took it everywhere.|For {h.his} birthday, {h.title} got {_a(c)} {n} from
    {h.his} {adult.kind}. {h.He} wanted to {TOYS[n]} all day long.|Of all {h.his} toys, {h.title} loved the {c} {n}
    best. {h.He} liked to {TOYS[n]}.] {t.day()}, {h} took the {n} to play {where}. {clue}

    [When {h} wanted to go home, the {n} was gone.|After a while, {h} wanted to play with the {n} again, but {h.he} did
    not have it any more.|Then {h} looked at {h.his} {h.hand}s. They were empty.] <{h.he} cried: Oh no! / Where is my
    {n}?> [?{h.He} [sat down and began to cry|looked left and right, but {h.he} did not see it].]

    [{f.title} heard {h.him} and came running.|Just then, {f.title} came by.|{f.title}, who lived next door, came to
    see what was wrong.] <{f}: [Don't be sad. / I will help you look for it.|Did you lose something? / Let's look for
    it together.|I have good eyes. / We will find it.]>

    [They looked by the {other}, but there was [only an old shoe|nothing there]. Then {f} saw something {d}, but it was
    only {COLOURS[d]}.|{f} saw something {d} and ran to get it, but it was only {COLOURS[d]}. They looked by the
    {other}, too, and found nothing.] <{f}: [Think hard.|Try to remember.] / Where did you have it last?> {h} [thought
    and thought|closed {h.his} eyes and thought]. "[Wait!|Now I know!|I remember!] {memory} I put it down by the
    {t.ask("place", left, other)}!"

    They ran there as fast as they could. In the {ground}, they saw something {t.ask("colour", c, d)}. It was the {n}!
    {f} picked it up and gave it to {t.ask("owner", h, f)}. "[Thank you for helping me!" said|I am so glad I have it
    back!" cried] {t.by(h, f)}. [Then they played with the {n} together until the sun went down.|From that day on,
    {h.he} took good care of {h.his} {n}.|{h.He} held the {n} tight all the way home.|{h.He} let {f} play with it
    first, because {f} was such a good friend.]
    """


def swap(t: Teller, h: Person, f: Person, n: str) -> str:
    """Two friends quarrel about a toy, and end by lending each other theirs."""
    where, _, spots = t.pick(*PLACES)
    spot = t.pick(*spots)
    m = t.pick(*(toy for toy in TOYS if toy != n))
    c, d = t.some(COLOURS, 2)
    refused = f"""<{f}: [Can I play with your {n}, please?|May I have a turn with your {n}?]> <{h}: No! / [It is
    mine.|I don't want to share it.|You have your own toy.]> {f} [was sad. {f.He} took {f.his} {m} and went to sit by
    the {spot}, all alone.|did not say anything. {f.He} walked away and sat down by the {spot}.]

    [Now {h} had nobody to play with. The {n} was not so much fun any more.|{h} went on playing, but it was not the
    same without {f}.] {h.He} [felt bad|walked over to {f}]. "I am sorry I said no. You can have a turn," said
    {t.by(h, f)}. <{f}: Thank you! / And you can play with my {m}.>"""
    grabbed = f"""{f} wanted the {n}, too. {f.He} did not ask. {f.He} just took it. <{h} shouted: Give it back! / It is
    mine.> {h} pulled, and {f} pulled. [Then, plop, the {n} fell into the mud by the {spot}.|Then they both let go, and
    the {n} landed in a puddle by the {spot}.]

    [They looked at it and were very quiet.|For a moment, nobody said a word.] "I am sorry I took it. I should have
    asked you first," said {t.by(f, h)}. {f.He} picked the {n} up and wiped it until it was clean. <{h}: I am sorry I
    shouted. / [You can play with it now.|Next time, just ask me.]> [?<{f}: And you can have my {m} for a while.>]"""
    return f"""
    [{t.intro(h)} {h.He} had {_a(c)} {n}. {f.title} was {h.his} best friend and had {_a(d)} {m}.|{h.title} and
    {f.title} were good friends. {h} had {_a(c)} {n}, and {f} had {_a(d)} {m}.|{f.title} had {_a(d)} {m}. {f.His}
    friend {h.title} had {_a(c)} {n}.] {t.day()}, they [met {where}. {h} showed all the things {h.he} could do with the
    {n}.|were playing {where}, {h} with the {n} and {f} with the {m}.|took their toys and met {where}.]

    {t.pick(refused, grabbed)}

    [So|Then they had a good idea, and] they traded. {f} played with the {t.ask("colour", c, d)} {n}, and {h} played
    with the {d} {m}. [?They laughed so much that a bird stopped to look at them.|It was much more fun than before.]

    [When it got dark, they took their own toys home.|In the evening, they traded back and went home.] {h} carried the
    {t.ask("owner", n, m)}, and {f} carried the {m}. [?<{f}: See you tomorrow!>|They both knew that sharing makes two
    friends happy.|A toy is the most fun when you share it.|They were still friends.]
    """


def brave(t: Teller, h: Person, f: Person, n: str) -> str:
    """Someone who is afraid of a thing must face it to help a friend."""
    fear, stuck, rescue = TROUBLES[n]
    stuck, rescue = stuck.format(h=h, f=f), rescue.format(h=h, f=f)
    other = t.pick(*FEARS)
    return f"""
    [{t.intro(h)} {h.He} was afraid of {fear}. {h.His} friend {f.title} was only afraid of {other}.|{h.title} and
    {f.title} were friends. <{h}: I am afraid of {fear}.> <{f}: That is all right. / I am afraid of {other}.>|Everyone
    is afraid of something. {f.title} was afraid of {other}, and {f.his} friend {h.title} was afraid of {fear}.]

    {t.day()}, [they played hide and seek. {h} closed {h.his} eyes and counted to ten. Then {h.he} looked for {f}, but
    could not find {f.him}.|{h} went to look for {f}. They wanted to pick berries together, but {f} did not come.|they
    were out for a walk. {f} ran ahead and was soon out of sight.] [Then there was a call.|All at once, {h} heard a
    voice.] "Help! Help!" {stuck} [?{h} [looked around, but there were no grown-ups near|called for help, but nobody
    came].]

    [{h} felt {h.his} knees shake.|{h} wanted to run away.|{h}'s heart went thump, thump, thump.] [<{h.he} thought: I
    am afraid of {t.ask("fear", fear, other)}. / But {f} needs me.>|<{h.he} whispered: I can do it. / I will go very
    slowly.>|But {h.he} could not leave {f} there.] {rescue}

    "[You helped me, and you are so afraid of {t.ask("fear", fear, other)}!|Thank you! You are so brave,]" said
    {t.by(f, h)}. <{h}: [I was very scared. / But I did it anyway.|My legs are still shaking. / But I am glad you are
    safe.]> {f} [gave {h} a big hug|took {h} by the {h.hand}]. "And when you are afraid of
    {t.ask("fear", other, fear)}, I will help you," {h} [said|promised]. [?Then they walked home side by side.|Being
    brave does not mean that you are never afraid.|That night, {h} slept very well.|From then on, everyone called
    {h.him} brave {h}.]
    """


def rain(t: Teller, h: Person, f: Person, n: str) -> str:
    """Rain spoils an outing, and something made at home is just as good."""
    adult = t.pick(*ADULTS)
    c, d = t.some(COLOURS, 2)
    mine, yours = t.some(TOPICS, 2)
    (won, cw), (lost, cl) = t.some(((h, c), (f, d)), 2)
    boats = f"""{adult} found some paper and [showed them how to fold|helped them make] boats. {h} made {_a(c)} boat,
    and {f} made {_a(d)} boat. [?They [drew little windows on them|gave each boat a tiny flag].]

    [At last, the rain stopped.|Then the rain went away, and the sun came out.] There was a big puddle in front of the
    house. <[{h}|{f}] shouted: Let's have a boat race!> They put their boats on the water and blew. [First the {cl}
    boat was ahead. Then the wind came, and the {cw} boat went past it.|The {cl} boat turned around and around. The
    {cw} boat sailed straight to the other side.] "My boat won!" cried {t.by(won, lost)}. {lost} [clapped|laughed] and
    picked up the {t.ask("colour", cl, cw)} boat. <{lost.he}: [Let's do it again!|Now I want to win, too!]>

    [They raced until their feet were wet and cold. Then {adult} made them warm milk.|They played until supper. They
    did not think about the {n} at all.|The next day was dry, and they went to the {n}. But they talked about the boats
    all the way.] [?A rainy day can be a good day, too.|{h} hoped that it would rain again soon.]"""
    tent = f"""<{adult}: Let's build a tent.> {h} got {h.his} {c} blanket, and {f} got {f.his} {d} blanket. They put
    them over four chairs[, and it was a fine tent| and crawled inside. It was dark and warm in there].

    In the tent, they told stories. [{h} told a story about a {mine}. Then {f} told one about a {yours}.|{f} told a
    story about a {yours} who lived in a shoe. {h} told one about a {mine} who could not sleep.] [?{adult} [sat with
    them and listened|gave them crackers]. They all laughed a lot.]

    In the evening, they took the tent down. {h} went to bed with the {t.ask("owner", c, d)} blanket, and {f} went to
    bed with the {d} one. "I liked your story about the {t.ask("topic", yours, mine)}," whispered {t.by(h, f)}. <{f}:
    And I liked your {mine}.>

    [The next day, the sun was shining, and they all went to the {n}.|It was still raining, but nobody was sad about
    the {n} any more.|The rain could wait, and the {n} could wait, too. They were both asleep.]"""
    return f"""
    [{t.intro(h)} {h.He} had a {f.sibling} named {f}. {t.day()}, {adult} wanted to take them to the {n}.|{h} and
    {h.his} {f.sibling} {f} were up early. Today, {adult} was going to take them to the {n}.|"Today we are going to the
    {n}!" {h} sang. {h.His} {f.sibling} {f} was already looking for {f.his} shoes. {adult} was going to take them.]
    [But then it began to rain. Drip, drop, drip, drop.|But when they opened the door, it was raining hard.|But big
    gray clouds came, and soon rain was running down the window.]

    <{h} cried: Oh no! / Now we can't go to the {n}.> <{adult}: [Don't be sad.|Rain is not so bad.] / I know something
    we can do.>

    {t.pick(boats, tent)}
    """


def broken(t: Teller, h: Person, f: Person, n: str) -> str:
    """Something breaks, the wrong one is blamed, and the truth mends more than the thing."""
    cat = t.pick(*CATS)
    adult = t.pick(*ADULTS)
    c = t.pick(*COLOURS)
    (at, hidden), (near, looked) = t.some(HIDEOUTS, 2)
    damage, tool = FRAGILE[n]
    return f"""
    [{t.intro(h)} {h.He} had a cat named {cat} and {_a(c)} {n} that {h.he} loved very much.|{h} had {_a(c)} {n}. It was
    old, and it was {h.his} best thing. {h} also had a cat named {cat}.|{h} lived with {h.his} {adult.kind} and a cat
    named {cat}. On a shelf in {h.his} room was {_a(c)} {n}.] {t.day()}, {h.his} friend {f} came to play.

    [While {h} was in the kitchen, {f} took the {n} to have a look at it.|{h} went out to get some juice. {f} saw the
    {n} and picked it up.] {damage.format(f=f)} {f} was scared. {f.He} hid the {n} {at} the {hidden}[? and sat down as
    if nothing was wrong].

    [Soon|Then] {h} came back. <{h.he}: Where is my {n}?> {h.He} looked {near} the {looked}, but it was not there.
    <{h.he}: [Did you take it, {cat}?|Was it you, {cat}?] / Bad cat!> {cat} [ran away|looked very sad|put down both
    ears].

    [{f} felt bad. It was not fair to the cat.|{f} looked at {cat}. {f.His} tummy began to hurt.|{f}'s face was hot and
    red.] "It was not {t.ask("blame", cat, f)}. It was me," said {t.by(f, h)}. "I broke your {n}, and I hid it {at} the
    {t.ask("place", hidden, looked)}. I am so sorry."

    [{h} was sad, but not for long.|{h} was angry at first. Then {h.he} saw that {f} was crying.|{h} was quiet for a
    while.] <{h.he}: [Thank you for telling me.|It is good that you told me.] / Maybe we can fix it.> They took the {n}
    to {h}'s {adult.kind}, who got {tool}. [?{f} wanted to help, too.] Soon it was [as good as new|almost as good as
    before].

    {f} gave the {c} {n} back to {t.ask("owner", h, f)}. [Then they both said sorry to {t.ask("blame", cat, h, f)} and
    gave the cat a bit of fish.|{cat} came and sat between them, and everyone was friends again.|<{h}: I am sorry,
    {cat}. / You are a good cat.>] [?It is hard to tell the truth, but it feels good.|Things can be fixed when we tell
    the truth.]
    """


def present(t: Teller, h: Person, f: Person, n: str) -> str:
    """Someone makes a present in secret, almost loses the secret, and gives it at last."""
    c, d = t.some(COLOURS, 2)
    (at, hidden), (near, looked) = t.some(HIDEOUTS, 2)
    return f"""
    [{t.intro(h)} {h.His} best color was {d}. {h.His} friend {f.title} liked {c} best.|{f.title} loved everything that
    was {c}. {f.His} friend {h.title} loved everything that was {d}.|{h.title} and {f.title} were best friends, but {h}
    liked {d} things and {f} liked {c} things.] [Soon it would be {f}'s birthday. {h} wanted to make a {n} for
    {f}.|{f}'s birthday was coming, and {h} had a plan. {h.He} would make a {n}.]

    {h} worked all [morning|afternoon|day]. {h.He} {GIFTS[n].format(c=c)}. [Then there was a knock on the door.|All at
    once, somebody knocked. Knock, knock!] It was {f}! {h} quickly hid the {n} {at} the {hidden}.

    <{f}: What are you doing?> <{h}: [Oh, nothing.|Nothing at all.] / [Let's go out and play.|I was just resting.]>
    [{f} looked around the room. {f.He} even looked {near} the {looked}, but there was nothing there.|{f} dropped
    {f.his} ball, and it rolled away. It stopped {near} the {looked}. {h} was scared, but {f} just took the ball and
    saw nothing.] [{f} went home and felt a little sad.|Later that day, {f} was sad.] <{f.he} thought: {h} forgot my
    birthday.>

    [The next day was the birthday.|Then the big day came.] {h} asked {f} to come over. "Close your eyes!" said
    {t.by(h, f)}. Then {h.he} went and got the {n}. It was still {at} the {t.ask("place", hidden, looked)}.

    {f} opened {f.his} eyes. "A {n}! And it is {t.ask("colour", c, d)}!" cried {t.by(f, h)}. <{h}: I know that you like
    {c} best. / I made it for you.> [{f} gave {h} a big hug. <{f.he}: I thought you forgot. / This is the best present
    of all.>|{f} would not put the {n} down all day.|Then they ate cake and sang.] [?A present from a friend is the
    best one.|And {h} was just as happy as {f}.]
    """


def race(t: Teller, h: Person, f: Person, n: str) -> str:
    """The fast one boasts and loses, or the kind one stops to help."""
    g = t.third(h, f)
    where, _, spots = t.pick(*(place for place in PLACES if place[0] != "in the garden"))
    goal, stop = t.some(spots, 2)
    nap = f"""{f} ran ahead like the wind. Soon {f.he} came to the {stop} and looked back. <{f.he}: They are so slow! /
    I can take a little nap.> {f.He} lay down and closed {f.his} eyes.

    [{h} ran and ran. {h.His} legs were tired, but {h.he} did not stop. {h.He} passed {f}, who was still asleep. {g}
    had a stone in {g.his} shoe and was far behind.|{g} met some friends and stopped to talk. But {h} kept on running,
    step by step, right past {f}, who did not wake up.] At last, {h} came to the {t.ask("place", goal, stop)}. {h.He}
    was the first one there!

    Everyone cheered. The noise woke {t.ask("who", f, h, g)} up, but it was too late. They gave the {n} to
    {t.ask("winner", h, f, g)}. "I should not have slept. Next time, I will run all the way," said {t.by(f, h, g)}.
    [{h} smiled and showed the {n} to everyone.|Slow and steady is sometimes best.|<{h}: You are still the fastest. /
    But I did not give up.>|{h} and {f} walked home together.]"""
    help_up = f"""{f} was in front. {h} and {g} were right behind {f.him}. But near the {stop}, {f} [tripped over a
    stone|slipped on the wet ground] and fell. "Ouch! My knee hurts!" cried {t.by(f, h, g)}.

    {g} did not [look back|stop]. But {h} did. {h.He} forgot about the race and helped {f} up. <{h.he}: [Hold on to
    me.|Lean on me.] / We will go together.>

    {g} was the first to come to the {t.ask("place", goal, stop)}, and so the {n} went to {t.ask("winner", g, h, f)}.
    Much later, {h} and {f} came, arm in arm. "[You stopped to help me. You are a true friend|You could have won, but
    you helped me]," said {t.by(f, h, g)}. [{g} heard it and felt a little bad. <{g.he}: Let us all share the {n}. /
    {h} ran the best race.>|{f} never said again that {f.he} was the best. {f.He} said that {h} was.|Everyone clapped
    for {h}, even {g}. Being kind is better than being first.]"""
    return f"""
    [{t.intro(h)} {h.He} could not run very fast. {f.title} was the fastest of all, and {f.he} told everyone.|{f.title}
    was very fast. <{f.he}: Nobody can run like me!> {h.title} was slow, but {h.he} never gave up.|{f.title} won every
    race. {h.title} had never won a race before.] {t.day()}, there was a [big |]race {where}. The [winner would
    get|prize was] {_a(n)}. {g.title} wanted to run, too. They all had to run to the {goal}. [Ready, set, go!|"One,
    two, three, go!" someone called.]

    {t.pick(nap, help_up)}
    """


def stray(t: Teller, h: Person, f: Person, n: str) -> str:
    """A frightened animal is won over with patience and brought back to its owner."""
    where, _, spots = t.pick(
        *(place for place in PLACES if place[0] in ("in the park", "in the meadow", "at the farm"))
    )
    hidden, other = t.some(spots, 2)
    food, dislikes, noise = STRAYS[n]
    wrong = t.pick(*dislikes)
    owner, stranger = t.some(NEIGHBOURS, 2)
    seen = (
        f"{owner} was standing at a gate and calling a name.",
        f"{stranger} was [painting a fence|washing a car|sweeping the steps].",
    )
    return f"""
    [{t.intro(h)} {t.day()}, {h.he} went for a walk with {h.his} friend {f}.|{h} and {f} were on their way to play
    {where}.|{t.day()}, {h} and {f} went out to play.] They went past some houses. {" ".join(t.some(seen, 2))}

    [Later, {where}, they heard|When they were {where}, they heard] a [tiny|small|sad little] noise.
    {noise.capitalize()}, {noise}! [They looked by the {other}, but nothing was there. Then they looked by the
    {hidden}, and there was|First they went to the {other}, but it did not come from there. Then they looked by the
    {hidden} and saw] a little {n}. It was shaking. [?<{f}: I think a [big dog|loud truck|loud bang] scared it.>]

    [{h} wanted to pick it up, but the {n} moved back.|{h} ran up to it, and the {n} hid its face.] "Don't run. We must
    be very quiet," [said|whispered] {t.by(f, h)}. {f} had some {wrong}, but the {n} did not want any. So {h} went and
    got some {food}. [Sniff, sniff.|They sat very still.] The {n} came closer, one step at a time, and did not stop
    eating until there was nothing left.

    <{f}: But whose is it? / Someone must miss it.> {h} thought about it. "[I know! ]Someone was calling [a name
    before|and calling]!" They [picked the {n} up|took the {n} in their arms] and [went|walked|ran] back.

    [They knocked on a door, and out came|Yes, there at the gate was] {t.ask("owner", owner, stranger)}. "[My little
    {n}|You found my {n}]! Where was it?" {h} smiled. "It was by the {t.ask("place", hidden, other)}, and it likes
    {t.ask("food", food, wrong)}!" [{owner} gave them each a cookie.|{owner} thanked them again and again.|{owner} let
    them play with the {n} for the rest of the day.] [?When someone is scared, it is good to be quiet and kind.|{h} and
    {f} felt very proud.]
    """.replace("did not stop eating", "did not stop drinking" if food == "milk" else "did not stop eating")


def plant(t: Teller, h: Person, f: Person, n: str) -> str:
    """Two seeds, two pots: one is cared for and one is forgotten."""
    adult = t.pick(*ADULTS)
    m = t.pick(*(plant for plant in PLANTS if plant != n))
    c, d = t.some(COLOURS, 2)
    sown = t.some((f"{h} put a {n} seed into {_a(c)} pot.", f"{f} put a {m} seed into {_a(d)} pot."), 2)
    return f"""
    [{t.intro(h)} {h.His} {adult.kind} had a big garden. {t.day()}, {adult} gave seeds to {h} and {h.his} friend
    {f.title}.|{h.title} and {f.title} wanted to grow something. {h}'s {adult.kind} had some seeds for them.|In the
    spring, {h.title} and {f.title} got seeds from {h}'s {adult.kind}.] {" ".join(sown)} <{adult}: Give them water
    every day. / And then you must wait.>

    [Every morning, {h} gave {h.his} seed some water. {f} watered {f.his} seed only once. Then {f.he} went off to play
    and forgot about it.|{h} watered {h.his} seed every day and even sang to it. But {f} did not like to wait. <{f.he}:
    Nothing is happening. / This is boring.> {f.He} forgot to give {f.his} seed any water.] [?The days went by. It was
    hot and dry.|One week went by, and then one more.]

    [Then, one morning,|At last, one day,] there was a tiny green leaf in the {t.ask("colour", c, d)} pot! <{h}
    shouted: Look, look! / It is growing!> {f} ran to look at the {d} pot, but there was only dry dirt. "[I forgot to
    water mine|I did not give mine any water]," said {t.by(f, h)}. {f.He} [began to cry|looked down at {f.his} feet].

    <{h}: [Don't cry.|It is not too late.] / I will help you.> Now they watered both pots, every single day. [?{f} did
    not forget again.|{f} came even when it was cold.|{f} learned to wait.] And one day, there was a little leaf in the
    {d} pot, too.

    [In the summer,|When summer came,|Many weeks later,] {h} had a [big|fine] {t.ask("owner", n, m)}, and {f} had a
    [fine|nice] {m}. [<{adult}: You both did so well!>|{f} gave {h} the {m}. <{f.he}: You helped me. / This is for
    you.>|They put the {c} pot and the {d} pot side by side in the sun.] [?Good things take time.|A seed needs water,
    sun and a friend.|Next year, they would do it again.]
    """


def picnic(t: Teller, h: Person, f: Person, n: str) -> str:
    """Three friends bring food to share; one loses theirs and does not go hungry."""
    g = t.third(h, f)
    where, ground, spots = t.pick(*PLACES)
    m, o = t.some((food for food in FOODS if food != n), 2)
    return f"""
    [{t.intro(h)} {t.day()}, {h.he} wanted to have a picnic {where} with {h.his} friends {f.title} and
    {g.title}.|{h.title}, {f.title} and {g.title} were friends. {t.day()}, they wanted to have a picnic {where}.|"Let's
    have a picnic {where}!" said {h.title}. {h.His} friends {f.title} and {g.title} liked the idea.] [{h} packed some
    {n}. {f} packed {m}, and {g} packed {o}.|{g} was going to bring {o}, and {f} was going to bring {m}. {h} had a
    whole bag of {n}.]

    [On the way, {h} put {h.his} bag down to rest. A [dog|goat|crow] came up from behind and ate all the {n}!|But on
    the way, {h} tripped over a stone. All the {n} fell into the [mud|water].|{h} ran the whole way. But when {h.he}
    opened {h.his} bag, it was empty. There was a hole in it, and all the {n} were gone!] [{h} walked on very slowly.
    {h.He} did not know what to say.|{h} wanted to go home. {h.He} had nothing to share now.]

    {f} and {g} were sitting by the {t.pick(*spots)}. <[{f}|{g}]: [What is the matter, {h}?|Why do you look so sad,
    {h}?]> "I have no {t.ask("owner", n, m, o)} any more. I have nothing for the picnic," said {t.by(h, f, g)}.

    <{g}: That does not matter. / We have enough for three.> {f} opened {f.his} bag and took out the
    {t.ask("owner", m, n, o)}. {g} gave {h} half of the {t.ask("owner", o, n, m)}. They sat in the {ground} and ate and
    [laughed|talked|sang] until everything was gone.

    "Thank you for the {m}, {t.ask("owner", f, g)}," said {h}. "And thank you for the {o}, {g}." [The next time, {h}
    brought twice as many {n} and gave them all away.|<{f}: Next time, we will hold your bag for you!> They all
    laughed.|When friends share, there is always enough.|Then they lay on their backs and looked at the clouds. <{g}:
    That one looks like a big pile of {n}!>]
    """


def way_home(t: Teller, h: Person, f: Person, n: str) -> str:
    """Someone runs after something pretty, gets lost, and finds the way back by the landmarks passed."""
    first, second, third = t.some(LANDMARKS, 3)
    adult = t.pick(*ADULTS)
    moved, colours = LURES[n]
    lure = f"{t.pick(*colours)} {n}"
    return f"""
    [{t.intro(h)} {h.His} {adult.kind} always said, "Don't go too far away." {t.day()}, {h} went out to play.|"Stay
    close to the house," said {h}'s {adult.kind}. {h.title} said yes and went out to play.|{t.day()}, {h.title} was
    playing in front of {h.his} house.] Then {h.he} saw {_a(lure)}. [It was so pretty that {h.he} ran after it.|{h.He}
    wanted to see it better and went after it.]

    The {n} {moved} past the {first}. {h} [went|ran] past the {first}, too. Then it {moved} past the {second}, and at
    last it {moved} past the {third}. [Then it was gone.|There {h} could not see it any more.]

    {h} looked around. [?Everything was new to {h.him}.|There was no house and no path.] <{h.he} cried: [I am lost!|I
    don't know the way home!]> [?It was getting dark, too.|A tear ran down {h.his} nose.]

    [{f.title} lived near there and heard {h.him}.|Then {f.title} came down the road.] <{f}: Don't be scared. / What
    did you see on your way?> <{h}: First there was a {first}, then a {second}, and then a {third}.> "[Then we just
    have to go back the other way around|I know them all. Come, I will take you back]," said {t.by(f, h)}.

    So they held {h.hand}s and started to walk. First they came to the {third}. [?It was not far.] Then they came to
    the {t.ask("place", second, first, third)}. [?{h} felt a little better.] And at last, they came to the
    {t.ask("place", first, second)}. "I can see my house!" shouted {t.by(h, f)}.

    {h}'s {adult.kind} [was standing at the door|ran out of the house] and gave {h.him} a big hug. <{adult}: [I was so
    worried!|There you are!] / What did you run after?> "{_a(n).capitalize()}," said {h}. "I am sorry. I will not do it
    again." [Then they all had soup, and {f} could stay for supper.|{adult} thanked {t.ask("helper", f, h)} and made a
    big cake.|From that day on, {h} and {f} were friends.]
    """


def noise(t: Teller, h: Person, f: Person, n: str) -> str:
    """A noise in the night turns out to be nothing bad."""
    sound, hint, found = NOISES[n]
    mine, yours = t.some(MONSTERS, 2)
    adult = t.pick(*ADULTS)
    c, d = t.some(COLOURS, 2)
    return f"""
    [{t.intro(h)} {t.day()}, {h.his} friend {f} came to sleep at {h.his} house.|{f} was allowed to sleep at {h}'s
    house. They were both very happy.|It was late. {h} and {h.his} {f.sibling} {f} had to go to bed.] {hint} {h} had
    {_a(c)} pillow, and {f} had {_a(d)} pillow. {adult} turned off the light.

    [Then there was a noise.|All at once, they heard something.] {sound}! <{h} whispered: Did you hear that? / I think
    it is a {mine}.> <{f}: No, I think it is a {yours}!>

    [They pulled the blanket up high. {sound}! There it was again.|They lay very still. {sound}! It did not stop.] [{f}
    hid {f.his} face in the {t.ask("owner", d, c)} pillow.|{h} put the {t.ask("owner", c, d)} pillow over {h.his}
    head.] <[{h}|{f}]: Let's go and look. / We will go together.> They took a light and walked on their toes[, hand in
    hand|, side by side|].

    [They looked here, and they looked there.|Step by step, they came closer to the noise.] Then they saw what it was.
    It was only {found}! "And I thought it was a {t.ask("guess", mine, yours)}!" [laughed|said] {t.by(h, f)}. "And I
    thought it was a {t.ask("guess", yours, mine)}!" [laughed|said] {f}.

    They laughed so loudly that {adult} came to see what was going on. <{adult}: [Why are you not in bed?|What are you
    two doing?]> They told {adult.him} all about the noise. [Then {adult} gave them some warm milk, and soon they were
    asleep.|{adult} took them back to bed and sang a song. When the noise came again, they just smiled.|<{adult}:
    Noises are always bigger in the dark.> And then they slept until morning.]
    """


# Each plot with its people and things. Plot, hero, friend and thing are the cast, which decides the split.
Plot = Callable[[Teller, Person, Person, str], str]
PLOTS: tuple[tuple[Plot, tuple[Person, ...], tuple[str, ...]], ...] = tuple(
    (plot, people, tuple(things))
    for plot, people, things in (
        (lost, CHILDREN + ANIMALS, TOYS),
        (swap, CHILDREN + ANIMALS, TOYS),
        (brave, CHILDREN + ANIMALS, TROUBLES),
        (rain, CHILDREN, OUTINGS),
        (broken, CHILDREN, FRAGILE),
        (present, CHILDREN + ANIMALS, GIFTS),
        (race, CHILDREN + ANIMALS, PRIZES),
        (stray, CHILDREN, STRAYS),
        (plant, CHILDREN + ANIMALS, PLANTS),
        (picnic, CHILDREN + ANIMALS, FOODS),
        (way_home, CHILDREN + ANIMALS, LURES),
        (noise, CHILDREN, NOISES),
    )
)
