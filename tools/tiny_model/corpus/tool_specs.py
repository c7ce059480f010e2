"""The tools that the corpus knows: names, parameters, requests, results and final replies.

Knows: the variants of every tool. Does not know: how they are joined to exchanges (`tools.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One parameter: its possible names, its JSON type, what fills it and its descriptions."""

    names: tuple[str, ...]
    type: str
    fill: str
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """A tool in all its variants; slots {0}, {1} stand for arguments, {r}, {r2} for results."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    result: tuple[tuple[str, str], ...]
    reply: str


_CITY = Parameter(
    ("city", "city", "location", "place"),
    "string",
    "city",
    ("The city", "City name", "The name of the city", "The city, e.g. Paris", "Where"),
)
_PERSON = Parameter(("name", "person", "to", "recipient"), "string", "name", ("The name of the person", "Name", "Who"))
_WORD = Parameter(("word", "text", "query", "term"), "string", "word", ("The word", "The text", "What to look for"))

SPECS: tuple[Spec, ...] = (
    Spec(
        ("get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather"),
        (
            "Get the weather for a city.",
            "Get the current weather",
            "Returns the weather in a city",
            "Get current temperature for a given location.",
        ),
        (_CITY,),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "Is it cold in {0}?",
            "weather {0}",
            "What is the weather like in {0} today?",
            "Tell me the weather in {0}.",
            "Will it rain in {0}?",
            "What's the weather like in {0}?",
            "How warm is it in {0}?",
            "Check the weather for {0}.",
        ),
        (("temperature", "number"), ("condition", "sky")),
        "It is {r} degrees and {r2} in {0}.",
    ),
    Spec(
        ("get_time", "get_local_time", "current_time", "get_current_time"),
        ("Get the local time in a city.", "Get the current time", "Returns the time in a place"),
        (_CITY,),
        (
            "What time is it in {0}?",
            "Tell me the time in {0}.",
            "What is the local time in {0}?",
            "time in {0}",
            "How late is it in {0}?",
        ),
        (("time", "clock"),),
        "It is {r} in {0}.",
    ),
    Spec(
        ("add", "add_numbers", "sum", "calculate_sum"),
        ("Add two numbers.", "Returns the sum of two numbers", "Calculate a sum"),
        (
            Parameter(("a", "a", "x", "first"), "integer", "number", ("First number", "A number")),
            Parameter(("b", "b", "y", "second"), "integer", "number", ("Second number", "Another number")),
        ),
        (
            "What is {0} + {1}?",
            "Add {0} and {1}.",
            "What is {0} plus {1}?",
            "Calculate {0} + {1}.",
            "Use the tool to add {0} and {1}.",
        ),
        (("result", "number"),),
        "The result is {r}.",
    ),
    Spec(
        ("get_population", "population"),
        ("Get the population of a city.", "How many people live in a place"),
        (_CITY,),
        ("How many people live in {0}?", "What is the population of {0}?", "Population of {0}?"),
        (("population", "big"),),
        "{0} has {r} people.",
    ),
    Spec(
        ("send_message", "send_text", "message"),
        ("Send a message to a person.", "Sends a text message"),
        (_PERSON, Parameter(("text", "message", "content"), "string", "words", ("The message", "What to say"))),
        ('Send "{1}" to {0}.', "Tell {0}: {1}", 'Write {0} the message "{1}".', "Send {0} a message: {1}"),
        (("status", "sent"),),
        "Your message to {0} is {r}.",
    ),
    Spec(
        ("set_timer", "start_timer", "timer"),
        ("Set a timer.", "Start a timer for some minutes"),
        (Parameter(("minutes", "minutes", "duration"), "integer", "number", ("Minutes", "How many minutes")),),
        (
            "Set a timer for {0} minutes.",
            "Start a timer of {0} minutes.",
            "Timer for {0} minutes, please.",
            "Wake me in {0} minutes.",
        ),
        (("status", "started"),),
        "The timer for {0} minutes is {r}.",
    ),
    Spec(
        ("get_phone_number", "find_phone", "lookup_phone", "get_contact"),
        ("Find the phone number of a person.", "Look up a phone number"),
        (_PERSON,),
        (
            "What is the phone number of {0}?",
            "Find the number of {0}.",
            "I need the phone number of {0}.",
            "How can I call {0}?",
        ),
        (("phone", "big"),),
        "The phone number of {0} is {r}.",
    ),
    Spec(
        ("get_price", "check_price", "price_of"),
        ("Get the price of an item.", "Returns the price of a product"),
        (Parameter(("item", "product"), "string", "word", ("The item", "Product name")),),
        ("How much is a {0}?", "What does a {0} cost?", "What is the price of a {0}?", "Price of {0}?"),
        (("price", "number"),),
        "The price of {0} is {r} dollars.",
    ),
    Spec(
        ("define", "get_definition", "lookup_word", "dictionary"),
        ("Look up a word in the dictionary.", "Get the definition of a word"),
        (_WORD,),
        ("What does {0} mean?", "Define {0}.", 'Look up the word "{0}".', "What is the meaning of {0}?"),
        (("definition", "words"),),
        "{0} means {r}.",
    ),
    Spec(
        ("search", "web_search", "search_web", "find"),
        ("Search the web.", "Search for some text"),
        (_WORD,),
        ("Search for {0}.", 'Search the web for "{0}".', "Look for {0}.", "Find something about {0}."),
        (("result", "words"),),
        "I found this: {r}.",
    ),
    Spec(
        ("translate", "translate_text"),
        ("Translate a word.", "Translates text to another language"),
        (
            Parameter(("text", "word"), "string", "word", ("The text", "The word")),
            Parameter(("language", "target", "to"), "string", "language", ("The language", "Target language")),
        ),
        ("Translate {0} to {1}.", "Translate {0} into {1}.", "How do you say {0} in {1}?", "What is {0} in {1}?"),
        (("translation", "word"),),
        "In {1} it is {r}.",
    ),
    Spec(
        ("book_table", "reserve_table", "make_reservation"),
        ("Book a table in a restaurant.", "Reserve a table"),
        (
            Parameter(("restaurant", "place"), "string", "city", ("Restaurant", "Where")),
            Parameter(("people", "guests", "seats"), "integer", "number", ("How many people", "Guests")),
        ),
        ("Book a table for {1} at {0}.", "Reserve a table at {0} for {1} people.", "I need a table for {1} at {0}."),
        (("status", "booked"),),
        "Your table for {1} at {0} is {r}.",
    ),
    Spec(
        ("play_music", "play_song", "play"),
        ("Play music of an artist.", "Plays a song"),
        (Parameter(("artist", "artist", "singer"), "string", "name", ("The artist", "Who sings")),),
        ("Play music by {0}.", "Play something by {0}.", "I want to hear {0}.", "Play {0}."),
        (("status", "playing"),),
        "Music by {0} is {r}.",
    ),
    Spec(
        ("get_order", "order_status", "track_order"),
        ("Get the status of an order.", "Track an order"),
        (Parameter(("order_id", "id", "order"), "integer", "number", ("The order number", "Order id")),),
        ("Where is order {0}?", "What is the status of order {0}?", "Track order {0}.", "Has order {0} been sent?"),
        (("status", "state"),),
        "Order {0} is {r}.",
    ),
)

LANGUAGES: tuple[str, ...] = ("French", "German", "Spanish", "Italian", "Polish", "Greek", "Dutch", "Latin")
SKIES: tuple[str, ...] = ("sunny", "cloudy", "rainy", "windy", "clear", "foggy", "snowy", "stormy")
STATES: tuple[str, ...] = ("shipped", "delivered", "waiting", "lost", "packed", "ready")
