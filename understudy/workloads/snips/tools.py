"""The seven SNIPS tools in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from understudy.workloads.workload import Json

DESCRIPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "AddToPlaylist": "Add a track, an album or an artist to one of the user's playlists.",
        "BookRestaurant": "Book a table at a restaurant.",
        "GetWeather": "Tell the weather or the forecast for a place and a time.",
        "PlayMusic": "Play music by artist, track, album, genre, year, playlist or service.",
        "RateBook": "Give a book a rating.",
        "SearchCreativeWork": "Find a creative work such as a book, a song, a film or a game.",
        "SearchScreeningEvent": "Find when and where films are shown.",
    }
)

SLOTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "AddToPlaylist": ("playlist", "playlist_owner", "music_item", "artist", "entity_name"),
        "BookRestaurant": (
            "restaurant_type",
            "party_size_number",
            "timeRange",
            "state",
            "city",
            "country",
            "restaurant_name",
            "party_size_description",
            "spatial_relation",
            "served_dish",
            "cuisine",
            "sort",
            "facility",
            "poi",
        ),
        "GetWeather": (
            "timeRange",
            "city",
            "country",
            "state",
            "condition_temperature",
            "condition_description",
            "geographic_poi",
            "current_location",
            "spatial_relation",
        ),
        "PlayMusic": (
            "artist",
            "music_item",
            "service",
            "year",
            "sort",
            "track",
            "album",
            "playlist",
            "genre",
        ),
        "RateBook": (
            "rating_value",
            "rating_unit",
            "best_rating",
            "object_select",
            "object_name",
            "object_type",
            "object_part_of_series_type",
        ),
        "SearchCreativeWork": ("object_name", "object_type"),
        "SearchScreeningEvent": (
            "movie_name",
            "object_type",
            "movie_type",
            "spatial_relation",
            "location_name",
            "object_location_type",
            "timeRange",
        ),
    }
)

REPEATABLE: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("AddToPlaylist", "music_item"),
        ("AddToPlaylist", "playlist"),
        ("BookRestaurant", "restaurant_type"),
        ("BookRestaurant", "spatial_relation"),
        ("GetWeather", "condition_temperature"),
        ("GetWeather", "current_location"),
        ("GetWeather", "spatial_relation"),
        ("GetWeather", "state"),
        ("GetWeather", "timeRange"),
        ("PlayMusic", "music_item"),
        ("PlayMusic", "service"),
        ("RateBook", "object_name"),
        ("RateBook", "object_type"),
        ("RateBook", "rating_value"),
        ("SearchScreeningEvent", "object_type"),
    }
)
"""Slots that one utterance may fill several times; their value may be a list."""


def tools() -> list[Json]:
    """Return the exact tool set that identifies this workload."""
    return [_tool(name) for name in sorted(SLOTS)]


def _tool(name: str) -> Json:
    properties = {slot: _property(name, slot) for slot in SLOTS[name]}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": DESCRIPTIONS[name],
            "parameters": {
                "type": "object",
                "properties": properties,
                "additionalProperties": False,
            },
        },
    }


def _property(name: str, slot: str) -> Json:
    text: Json = {"type": "string"}
    if (name, slot) not in REPEATABLE:
        return text
    return {"anyOf": [text, {"type": "array", "items": text, "minItems": 2}]}
