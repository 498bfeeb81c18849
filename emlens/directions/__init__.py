"""Every way to get a direction: answers, personas, shifts, probes, training, files."""

from emlens.directions.answer_contrasts import (
    contrast_answers,
    extract_directions,
    shift_directions,
)
from emlens.directions.coloured_tokens import token_view
from emlens.directions.control_vectors import read_control_vectors, write_control_vectors
from emlens.directions.persona_contrasts import contrast_personas, persona_questions
from emlens.directions.probe_directions import probe_direction, probe_directions
from emlens.directions.row_contrasts import contrast
from emlens.directions.row_filters import RowFilter
from emlens.directions.steering_vector import train_steering_vector
from emlens.directions.text_directions import direction_from_texts
from emlens.directions.vector_files import (
    read_persona_vectors,
    read_steering_vectors,
    write_persona_vectors,
    write_steering_vectors,
)

__all__ = [
    "RowFilter",
    "contrast",
    "contrast_answers",
    "contrast_personas",
    "direction_from_texts",
    "extract_directions",
    "persona_questions",
    "probe_direction",
    "probe_directions",
    "read_control_vectors",
    "read_persona_vectors",
    "read_steering_vectors",
    "shift_directions",
    "token_view",
    "train_steering_vector",
    "write_control_vectors",
    "write_persona_vectors",
    "write_steering_vectors",
]
