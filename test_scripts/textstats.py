"""A module of one's own, for letter_count.py. Run by itself, it shows what it does with one line."""

from collections import Counter


def frequent_letters(text: str, many: int) -> list:
    """The `many` most frequent letters with their counts; equally frequent ones in order of the alphabet."""
    counts = Counter(letter for letter in text.lower() if letter.isalpha())
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:many]


def bar(part: int, whole: int, width: int = 60) -> str:
    return "#" * max(1, round(width * part / max(whole, 1)))


if __name__ == "__main__":
    print(frequent_letters("the quick brown fox jumps over the lazy dog", 3))
