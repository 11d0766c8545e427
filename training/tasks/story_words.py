"""The vocabulary of the built-in stories: people, places, things and events."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """A person or animal in a story, with the words that refer to them."""

    name: str
    kind: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()

    @property
    def title(self) -> str:
        """The name, with the kind of an animal, whose name alone would look like a child's."""
        return self.name if self.kind in ("girl", "boy") else f"{self.name} the {self.kind}"

    @property
    def hand(self) -> str:
        return "hand" if self.kind in ("girl", "boy") else "paw"

    @property
    def sibling(self) -> str:
        return "brother" if self.he == "he" else "sister"


def she(name: str, kind: str) -> Person:
    return Person(name, kind, "she", "her", "her")


def he(name: str, kind: str) -> Person:
    return Person(name, kind, "he", "him", "his")


GIRLS = "Lily Mia Anna Sue Lucy Emma Zoe Ella Ruby Molly Rosie Nina Amy Jane Kate Sara Tina Eva Ivy Nora".split()
BOYS = "Tom Ben Max Sam Tim Jack Leo Finn Noah Luke Adam Theo Joe Dan Nick Oscar Peter Toby Hugo Jim".split()
CHILDREN = (*(she(name, "girl") for name in GIRLS), *(he(name, "boy") for name in BOYS))
ANIMALS = (
    *map(he, "Pip Bruno Spike Milo Dusty Biscuit".split(), "mouse bear hedgehog mole badger puppy".split()),
    *map(she, "Bella Fern Hazel Olive Coco Tilly".split(), "rabbit fox squirrel otter kitten mouse".split()),
)
ADULTS = (she("Mom", "mom"), he("Dad", "dad"), she("Grandma", "grandma"), he("Grandpa", "grandpa"))
NEIGHBOURS = ("Mrs. Hill", "Mr. Brown", "Mrs. Bell", "Mr. Wood", "Mrs. Green", "Mr. Lane")
CATS = ("Whiskers", "Tiger", "Smoky", "Ginger", "Patches")

# Each colour with a thing of that colour, found by mistake in a search.
COLOURS = {
    "red": "an apple",
    "blue": "a feather",
    "green": "a frog",
    "yellow": "a flower",
    "orange": "a leaf",
    "pink": "a flower",
    "purple": "a berry",
    "white": "a stone",
}
TOYS = {
    "ball": "bounce it up and down",
    "kite": "fly it high in the sky",
    "truck": "push it along the path",
    "drum": "bang on it with a stick",
    "boat": "float it on the water",
    "hoop": "roll it along the ground",
    "bucket": "fill it with sand and stones",
    "train": "pull it along on a string",
    "flute": "play little songs on it",
    "cart": "fill it with leaves and pull it around",
    "net": "catch leaves with it",
    "balloon": "throw it up and catch it",
}
# A place, its ground, and things that stand there.
PLACES = (
    ("in the park", "grass", ("swing", "slide", "bench", "fountain", "bridge", "tree")),
    ("in the garden", "grass", ("gate", "pond", "shed", "hedge", "well", "bench")),
    ("at the beach", "sand", ("rock", "umbrella", "pier", "log", "hut")),
    ("at the farm", "straw", ("barn", "well", "fence", "tractor", "pond")),
    ("in the meadow", "grass", ("stream", "rock", "bush", "fence", "stump")),
)
HIDEOUTS = tuple(
    zip(
        ("under", "under", "under", "behind", "behind", "behind", "in", "in"),
        ("bed", "stairs", "table", "sofa", "door", "curtain", "cupboard", "closet"),
    )
)
# What the hero fears, how the friend got stuck, and what the hero does about it.
TROUBLES = {
    "tree": (
        "high places",
        "{f} was sitting near the top of a tall tree. {f.He} had climbed up, and now {f.he} could not get down.",
        "{h} held on tight and climbed up, one branch at a time. {h.He} took {f} by the {h.hand} and said where to"
        " step. Slowly, slowly, they came down together.",
    ),
    "cave": (
        "the dark",
        "It came from the dark cave. {f} had gone inside and hurt {f.his} foot.",
        "{h} put one {h.hand} on the cold wall and walked into the dark, one step at a time. {f} was sitting at the"
        " very end of the cave. {h} helped {f.him} out into the sun.",
    ),
    "stream": (
        "deep water",
        "{f} was standing on a rock in the middle of the stream. The water was high, and {f.he} could not get back.",
        "{h} took a long stick and stepped into the cold water, one foot and then the other. {f} held on to the end of"
        " the stick until they were both on dry ground.",
    ),
    "bridge": (
        "high places",
        "{f} was on the high bridge. A board had broken, and {f.his} foot was stuck.",
        "{h} did not look down. {h.He} walked out on the bridge, one board at a time, and pulled and pulled until {f}"
        " was free.",
    ),
    "barn": (
        "geese",
        "{f} was in the barn. Three big geese stood in front of it and did not let anyone out.",
        '{h} stood as tall as {h.he} could. "Shoo!" {h.he} said. The geese hissed, but {h} walked right past them.'
        " Then the geese ran away, and {f} could come out.",
    ),
    "hole": (
        "worms",
        "{f} had slipped into a deep hole in the ground. It was full of worms.",
        "{h} lay down on the wet ground, right next to the worms, and let down a long branch. {f} held on to it, and"
        " {h} pulled {f.him} out of the hole.",
    ),
    "bush": (
        "bees",
        "{f} had crawled into a thorny bush and was stuck. Bees were buzzing all around it.",
        "{h} walked up to the bush very slowly, so that the bees would not be angry. {h.He} bent the thorns away, one"
        " by one, until {f} could crawl out.",
    ),
}
FEARS = ("thunder", "spiders", "snakes", "big dogs", "loud noises", "ghosts")
OUTINGS = ("zoo", "beach", "park", "farm", "market", "pool", "playground", "fair", "lake", "circus")
TOPICS = ("dragon", "whale", "pirate", "giant", "princess", "robot", "lion", "witch", "monkey", "snowman")
# How a thing broke, and what mends it.
FRAGILE = {
    "cup": ("It fell down. Crack! The handle came off.", "some glue"),
    "kite": ("{f.He} pulled too hard. Rip! There was a big hole in it.", "some tape"),
    "doll": ("{f.He} pulled too hard. Snap! One arm came off.", "a needle and thread"),
    "truck": ("It fell down. Crack! One wheel came off.", "some glue"),
    "basket": ("{f.He} swung it around. Snap! The handle came off.", "some string"),
    "book": ("{f.He} turned a page too fast. Rip! It tore in two.", "some tape"),
    "bowl": ("It fell down. Crack! Now there were two pieces.", "some glue"),
    "plate": ("It fell down. Crack! Now there were three pieces.", "some glue"),
    "puppet": ("{f.He} pulled on the strings too hard. Snap! One leg came off.", "a needle and thread"),
    "clock": ("It fell down. Crack! The glass broke, and the clock did not tick.", "some tools and new glass"),
}
# A present, and how someone makes it.
GIFTS = {
    "necklace": "put {c} beads on a string, one by one",
    "crown": "cut {c} paper and glued gold stars on it",
    "card": "drew a cake on {c} paper",
    "puppet": "sewed two buttons on {c} cloth for the eyes",
    "cup": "made it out of clay and painted {c} dots on it",
    "pillow": "filled {c} cloth with soft wool",
    "mask": "cut {c} paper and painted a funny nose on it",
    "box": "made it out of wood and glued {c} shells on it",
    "scarf": "knitted with {c} wool, row after row",
    "flag": "painted {c} stripes on a piece of cloth",
}
PRIZES = ("ribbon", "medal", "cup", "crown", "cake", "basket of apples", "star", "badge", "jar of honey")
# A lost animal: the food it likes, food it does not like, and its noise.
STRAYS = {
    "kitten": ("milk", ("bread", "carrots"), "meow"),
    "puppy": ("sausage", ("grass", "berries"), "whimper"),
    "rabbit": ("carrots", ("cheese", "sausage"), "rustle"),
    "duckling": ("corn", ("cheese", "cake"), "peep"),
    "chick": ("corn", ("milk", "sausage"), "peep"),
    "lamb": ("clover", ("cheese", "fish"), "baa"),
    "piglet": ("apples", ("fish", "cake"), "squeal"),
    "goat": ("hay", ("fish", "cheese"), "bleat"),
}
PLANTS = ("sunflower", "bean", "pumpkin", "tulip", "tomato", "rose", "daisy", "cabbage", "melon", "pepper")
FOODS = (
    "pears",
    "plums",
    "cherries",
    "cookies",
    "sandwiches",
    "muffins",
    "grapes",
    "pancakes",
    "strawberries",
    "nuts",
)
# Something to run after, how it moves, and how it looks.
LURES = {
    "butterfly": ("flew", ("yellow", "white", "orange", "blue")),
    "dragonfly": ("flew", ("green", "blue", "red")),
    "bird": ("flew", ("red", "blue", "yellow")),
    "bee": ("flew", ("fat", "happy", "big")),
    "ladybug": ("flew", ("red", "tiny", "pretty")),
    "frog": ("hopped", ("green", "fat", "little")),
    "rabbit": ("hopped", ("white", "brown", "little")),
    "feather": ("floated", ("white", "blue", "green")),
    "balloon": ("floated", ("red", "yellow", "purple", "pink")),
    "leaf": ("floated", ("red", "yellow", "orange")),
    "bubble": ("floated", ("big", "shiny", "round")),
}
LANDMARKS = ("well", "windmill", "bridge", "pond", "barn", "haystack", "fountain", "tower", "church", "mill")
# The source of a noise in the night, its sound, the clue before bed, and the explanation.
NOISES = {
    "branch": (
        "Tap, tap, tap",
        "It was windy, and an old tree stood close to the house.",
        "a branch, tapping on the window",
    ),
    "owl": ("Hoo, hoo, hoo", "Outside, a big bird flew over the roof.", "an owl, sitting on the roof"),
    "dog": ("Thump, thump, thump", "The dog lay down in the hall.", "the dog, wagging its tail in its sleep"),
    "mouse": ("Scratch, scratch", "There was a bit of cheese on the floor.", "a mouse, eating the cheese"),
    "cat": ("Scratch, meow, scratch", "Nobody had seen the cat since supper.", "the cat, waiting at the door"),
    "gate": ("Creak, bang, creak", "It was windy, and the gate was still open.", "the gate, moving in the wind"),
    "clock": ("Tick, tock, tick", "There was a new clock in the hall.", "the clock in the hall"),
    "tap": ("Drip, drip, drip", "They both washed at the kitchen tap.", "the tap, dripping in the kitchen"),
    "rain": ("Plop, plop, plop", "There were dark clouds in the sky.", "the rain, falling into a bucket"),
}
MONSTERS = ("bear", "dragon", "ghost", "monster", "wolf", "giant", "robber", "witch")
TRAITS = ("little", "kind", "happy", "cheerful", "curious", "clever", "quiet", "small", "friendly", "young")
DAYS = ("One day", "One sunny day", "One morning", "One fine morning", "One afternoon", "One warm day", "One Sunday")
