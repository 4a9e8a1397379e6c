"""Made defects: good pictures spoilt in many ways, to learn which heads see anything on this part."""

from manyeyes.data.made.contract import Kind, Mask, Picture, Subject
from manyeyes.data.made.kinds import KINDS, spoil
from manyeyes.data.made.part import subject
from manyeyes.data.made.write import made_frame, make_defects

__all__ = ["KINDS", "Kind", "Mask", "Picture", "Subject", "made_frame", "make_defects", "spoil", "subject"]
