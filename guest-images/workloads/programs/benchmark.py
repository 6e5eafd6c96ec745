"""What scripts do: objects, numbers, strings, dictionaries, regular expressions, JSON. Prints a digest of each."""

import json
import re
from collections import Counter


class Random:
    """A linear congruential generator, so that every run is the same."""

    def __init__(self):
        self.state = 1

    def below(self, limit):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self.state >> 33) % limit


def queens(size):
    """Placements of queens that do not attack each other, by recursion."""

    def place(row, columns, left, right):
        if row == size:
            return 1
        found = 0
        for column in range(size):
            if column not in columns and row + column not in left and row - column not in right:
                found += place(row + 1, columns | {column}, left | {row + column}, right | {row - column})
        return found

    return place(0, frozenset(), frozenset(), frozenset())


def mandelbrot(size):
    """Floating point."""
    inside = 0
    for y in range(size):
        for x in range(size):
            z = c = complex(3.0 * x / size - 2.0, 2.0 * y / size - 1.0)
            for _ in range(30):
                if abs(z) > 2.0:
                    break
                z = z * z + c
            else:
                inside += 1
    return inside


def words(count):
    """Strings and dictionaries."""
    random = Random()
    text = " ".join("".join("etaoinshrdlu"[random.below(12)] for _ in range(1 + random.below(6))) for _ in range(count))
    counts = Counter(text.split())
    capitals = re.sub(r"\b([a-z])([a-z]*)n\b", lambda match: match.group(1).upper() + match.group(2), text)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3], len(re.findall(r"[A-Z]\w+t\b", capitals))


def documents(count):
    """JSON there and back."""
    random = Random()
    records = [{"id": i, "tags": [str(random.below(1000)) for _ in range(5)], "x": random.below(10**6) / 7} for i in range(count)]
    again = json.loads(json.dumps(records, indent=1))
    again.sort(key=lambda record: (record["tags"], record["x"]))
    return sum(record["id"] * position for position, record in enumerate(again))


def primes(limit):
    """Lists and slices; a large number."""
    sieve = bytearray([1]) * limit
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    product = 1
    for number in range(2, 2000):
        if sieve[number]:
            product *= number
    return sum(sieve) - 2, product % 1000003


print(queens(6), mandelbrot(60), words(8000), documents(1200), primes(200000))
