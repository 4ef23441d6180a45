"""What a teacher model is asked to write: short requests in many shapes, each a function of one number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

SEED_STRIDE: Final = 7_919   # numbers of neighbouring prompts share no stream

_HEROES: Final = (
    "a little girl", "an old sailor", "a shy boy", "two brothers", "a clever fox", "a tired teacher",
    "a young baker", "a lost puppy", "a kind nurse", "a grandmother", "a curious cat", "a farmer",
    "a small robot", "three friends", "a lonely lighthouse keeper", "a bus driver", "a painter",
    "a new student", "a brave mouse", "a gardener", "a librarian", "a fisherman and his son", "a doctor",
    "a street musician", "twins", "a carpenter", "a pilot", "a postman", "a retired engineer",
    "a hungry bear", "a princess", "a boy with a red bicycle", "a violin player", "a scientist", "a shepherd",
    "a little owl", "a cook", "a night watchman", "a girl who loves stars", "a crow",
)  # fmt: skip
_EVENTS: Final = (
    "finds a key", "loses a hat in the wind", "learns to swim", "gets lost in the snow",
    "meets an old friend", "builds a boat", "plants a tree", "hears a strange sound at night",
    "misses the last train", "bakes a cake", "repairs a broken clock", "keeps a secret", "tells the truth",
    "wins a race", "forgets a birthday", "helps a stranger", "moves to a new town", "opens a small shop",
    "discovers a cave", "saves a bird", "writes a letter", "is afraid of the dark",
    "shares the last piece of bread", "sees the sea for the first time", "breaks a window", "finds a map",
    "learns a new language", "waits for the rain", "has to say goodbye", "makes a mistake", "starts a garden",
    "wants to be brave", "finds a message in a bottle", "paints the whole house", "visits a museum",
)  # fmt: skip
_PLACES: Final = (
    "in a small village", "by the sea", "in the mountains", "in a big city", "at school", "in an old house",
    "in the forest", "on a farm", "at a railway station", "in a library", "on an island", "in a kitchen",
    "at a market", "near a river", "in winter", "on a rainy day", "on the first day of spring", "at night",
    "on a long journey",
)  # fmt: skip
_SUBJECTS: Final = (
    "rain", "the moon", "bread", "bees", "magnets", "a bicycle", "sleep", "the heart", "volcanoes", "glass",
    "money", "electricity", "the seasons", "plants", "the ocean", "music", "clocks", "bridges", "trains",
    "the internet", "maps", "gravity", "sound", "light", "colours", "ice", "soap", "vaccines", "memory",
    "teeth", "spiders", "birds", "whales", "deserts", "rivers", "earthquakes", "stars", "batteries",
    "computers", "a computer program", "a database", "a loop", "an email", "a bank", "taxes", "a library",
    "a hospital", "a school", "democracy", "law", "friendship", "courage", "honesty", "patience", "cheese",
    "coffee", "tea", "chocolate", "salt", "sugar", "rice", "paper", "books", "language", "numbers",
    "fractions", "percentages", "probability", "a triangle", "time zones", "weather", "wind", "snow", "fire",
    "engines", "airplanes", "ships", "elevators", "refrigerators", "cameras", "telephones", "recycling",
    "forests", "soil", "insects", "dogs", "cats", "horses", "fish", "the human brain", "breathing",
    "exercise", "vitamins",
)  # fmt: skip
_TASKS: Final = (
    "bake bread", "plant tomatoes", "write a letter", "clean a window", "learn a new word every day",
    "tie a knot", "make a cup of tea", "pack a suitcase", "change a tyre", "read a map", "cook rice",
    "make soup", "save money", "fall asleep", "prepare for an exam", "start a conversation", "care for a cat",
    "walk a dog", "paint a wall", "repair a bicycle", "write a short story", "sort old photographs",
    "make a salad", "wash clothes", "plan a trip", "learn to swim", "give a short speech", "say sorry",
    "make a paper boat", "stay calm", "wake up early", "draw a face", "use a library", "remember names",
    "organise a desk", "boil an egg", "choose a book", "iron a shirt", "grow herbs", "stay warm in winter",
    "write a shopping list", "write a simple Python function", "find a bug in a program",
    "choose a good password", "back up a computer", "take a good photograph", "build a snowman",
    "fold a shirt",
)  # fmt: skip
_PEOPLE: Final = (
    "a customer and a shopkeeper", "two friends", "a mother and her son", "a teacher and a student",
    "two neighbours", "a doctor and a patient", "a tourist and a local", "a waiter and a guest",
    "two colleagues", "a father and daughter", "a librarian and a child", "a bus driver and a passenger",
    "a grandfather and his grandchild", "two strangers",
)  # fmt: skip
_MATTERS: Final = (
    "the weather", "a lost umbrella", "a birthday present", "a broken phone", "what to cook", "a new job",
    "a good book", "weekend plans", "a noisy dog", "the price of apples", "the way to the station", "a film",
    "learning to drive", "a late train", "a garden", "holidays", "music", "moving house", "a cold",
    "homework", "a surprise party", "football",
)  # fmt: skip
_GREETINGS: Final = (
    "Hi! How are you today?", "Good morning!", "I had a long day.", "Tell me something nice.",
    "I feel a bit sad today.", "I can't sleep.", "It's my birthday today!", "I'm bored. Any ideas?",
    "Do you like music?", "I got a new job!", "What should I have for dinner?", "My friend is angry with me.",
    "I am nervous about tomorrow.", "Thank you for your help.", "I just moved to a new city.",
    "It has been raining all day.", "I want to learn something new.", "I miss my family.",
)  # fmt: skip
_ADJECTIVES: Final = ("short", "simple", "funny", "quiet", "happy", "sad", "warm", "surprising", "gentle", "thrilling")
_READERS: Final = ("for a child", "in simple words", "in three sentences", "in one paragraph", "briefly", "to a friend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to the teacher; `number` decides it and its sampling seed."""

    number: int
    kind: str
    prompt: str
    max_tokens: int


def ask(number: int) -> Ask:
    """Return the request of that number, always the same."""
    rng = random.Random(number * SEED_STRIDE + 1)
    kind = rng.choices(("story", "explanation", "dialogue", "how_to", "small_talk", "description"),
                       weights=(30, 22, 12, 16, 8, 12))[0]
    hero, event, place = rng.choice(_HEROES), rng.choice(_EVENTS), rng.choice(_PLACES)
    subject, other, reader = rng.choice(_SUBJECTS), rng.choice(_SUBJECTS), rng.choice(_READERS)
    task, people, matter = rng.choice(_TASKS), rng.choice(_PEOPLE), rng.choice(_MATTERS)
    mood, word = rng.choice(_ADJECTIVES), rng.choice(_SUBJECTS)
    shapes: dict[str, tuple[str, ...]] = {
        "story": (
            f"Write a {mood} story about {hero} who {event} {place}.",
            f"Tell me a {mood} story: {hero} {event}.",
            f"Write a story {place} in which {hero} {event}. Use the word \"{word.split()[-1]}\".",
            f"Once upon a time, {hero} lived {place}. Continue the story.",
        ),
        "explanation": (
            f"Explain {subject} {reader}.", f"What should I know about {subject}?", f"Teach me about {subject}.",
            f"Explain why people need {subject}.", f"What is the difference between {subject} and {other}?",
            f"Tell me three facts about {subject}.", f"How are {subject} and {other} connected?",
            f"A child asks about {subject} {place}. What do you answer?",
        ),
        "dialogue": (
            f"Write a short dialogue between {people} about {matter}.",
            f"Write a {mood} conversation {place} between {people}.",
        ),
        "how_to": (
            f"How do I {task}?", f"Explain {reader} how to {task}.", f"Give me some advice: I want to {task}.",
            f"What do I need to {task}?", f"{hero.capitalize()} wants to {task}. What advice would you give?",
        ),
        "small_talk": (
            f"{rng.choice(_GREETINGS)} Let's talk about {matter}.", f"What do you think about {subject}?",
            f"{rng.choice(_GREETINGS)} I was thinking about {subject}.", rng.choice(_GREETINGS),
        ),
        "description": (
            f"Describe {hero} {place}.", f"Describe a {mood} morning {place}.", f"Write a paragraph about {subject}.",
            f"Write a {mood} poem about {subject}.", f"Write a letter to a friend about {matter}.",
        ),
    }  # fmt: skip
    longest = {"story": 200, "dialogue": 180, "small_talk": 70}.get(kind, 140)
    return Ask(number=number, kind=kind, prompt=rng.choice(shapes[kind]), max_tokens=longest)
