"""Datasets of faces that were withdrawn, or built on such ones, told by how they are laid out.

A layout is a hint and no proof: it says what the publisher must be able to rule out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SHARE = 0.5
"""Of pictures whose names must have the form."""

LEAST = 3
"""Pictures that must have it: a few may by chance."""

PENG = "Peng, Mathur and Narayanan 2021, Mitigating dataset harms requires stewardship"


@dataclass(frozen=True, slots=True)
class Known:
    """A dataset: what it was, what became of it, who says so, and how its files are named.

    Attributes:
        name: as it is cited.
        status: `withdrawn`, `derived` from a withdrawn one, or `disputed` but not withdrawn.
        when: it was withdrawn, as far as sources say.
        story: what it is and what happened.
        sources: of all that.
        picture: form of the end of a picture's path; empty where pictures have none of their own.
        marker: form of a folder or file that it comes with, as a whole.
        classes: numbers of people that a RecordIO `property` file gives for it.
        reader: a format of this dataset's own.
    """

    name: str
    status: str
    when: str
    story: str
    sources: tuple[str, ...]
    picture: str = ""
    marker: str = ""
    classes: tuple[int, ...] = ()
    reader: str = ""


KNOWN = (
    Known(
        "MS-Celeb-1M",
        "withdrawn",
        "June 2019",
        "About ten million pictures of 100,000 people whom Microsoft Research looked up in a "
        "search engine in 2016; nobody was asked, and many were journalists, artists or "
        "activists rather than celebrities. Microsoft took it down after the press described "
        "who used it. Copies, cleaned lists and lists of names went on circulating.",
        (
            "Guo et al. 2016, MS-Celeb-1M (ECCV)",
            "Murgia, Financial Times, 6 June 2019",
            "https://exposing.ai/datasets/msceleb",
            PENG,
        ),
        picture=r"m\.0\w+/\d+(-FaceId-\d+)?\.\w+",
        marker=r"FaceImageCroppedWith(Out)?Alignment\.tsv|MsCelebV1-.+\.tsv"
        r"|Top1M_MidList\.Name\.tsv|MS-Celeb-1M_clean_list\.txt",
        reader="msceleb-tsv",
    ),
    Known(
        "MS1M (InsightFace's cleaned MS-Celeb-1M)",
        "derived",
        "",
        "Aligned and cleaned pictures of MS-Celeb-1M in RecordIO (MS1M-IBUG, -ArcFace, "
        "-RetinaFace). They outlived the withdrawal of what they were made of.",
        ("https://github.com/deepinsight/insightface, recognition/_datasets_", PENG),
        marker=r"faces_emore|faces_ms1m.*|ms1m[-_].*|ms1mv[123].*",
        classes=(85742, 93431),
    ),
    Known(
        "MegaFace",
        "withdrawn",
        "by 2022",
        "4.7 million faces of 672,000 people from Flickr albums, many of them of families, "
        "gathered by the University of Washington from 2015 on; licences spoke of copyright, "
        "and those pictured were not asked. Its page came to say that the data are no longer "
        "distributed.",
        (
            "Kemelmacher-Shlizerman et al. 2016, The MegaFace benchmark (CVPR)",
            "Hill and Krolik, New York Times, 11 October 2019",
            "https://megapixels.cc/megaface",
            "https://github.com/haibo-qiu/FROM/issues/2",
        ),
        picture=r"\d+@N\d\d(_identity_\d+)?/\d+_\d+\.\w+",
        marker="FlickrFinal2|Megaface_Challenge_1M_disjoint_.*",
    ),
    Known(
        "DiveFace",
        "derived",
        "",
        "24,000 people chosen out of MegaFace in 2019 and sorted by sex and three ethnic "
        "groups. No withdrawal of its own is known, but its pictures are those of a dataset "
        "that has been.",
        (
            "Morales et al. 2019, SensitiveNets",
            "https://github.com/BiDAlab/DiveFace",
            "https://exposing.ai",
        ),
        marker="[HM][ABN]4K_120",
    ),
    Known(
        "VGGFace2",
        "withdrawn",
        "at the end of 2020",
        "3.3 million pictures of 9,131 people from an image search, published by the University"
        " of Oxford in 2017. Its site went offline; one of its authors answered that it would "
        "remain so for now.",
        (
            "Cao et al. 2018, VGGFace2 (FG)",
            "https://github.com/ox-vgg/vgg_face2/issues/50",
            PENG,
        ),
        picture=r"n\d{6}/\d{4}_\d{2}\.\w+",
        classes=(8631,),
    ),
    Known(
        "DukeMTMC",
        "withdrawn",
        "April 2019",
        "Eight cameras filmed some 2,000 people on the campus of Duke University in 2014. The "
        "study had been approved for an indoor space and for data on request; it filmed "
        "outdoors and published openly. The university closed the site and an author "
        "apologised.",
        (
            "Ristani et al. 2016, Performance measures and a data set for multi-target, "
            "multi-camera tracking",
            "Duke Chronicle, June 2019",
            PENG,
        ),
        picture=r"\d{4}_c[1-8]_f\d{7}\.\w+",
        marker="DukeMTMC.*",
    ),
    Known(
        "Brainwash",
        "withdrawn",
        "June 2019",
        "11,917 frames of the live stream of a San Francisco cafe in 2014, in which customers' "
        "heads were marked; that they knew is not on record. Stanford removed it at the request"
        " of its depositor after the press had written of it.",
        (
            "Stewart, Andriluka and Ng 2016, End-to-end people detection in crowded scenes (CVPR)",
            "Stanford Daily, 28 July 2020",
        ),
        marker=r"brainwash_1[01]_\d\d_2014_images|brainwash_(train|val|test)\.idl",
    ),
    Known(
        "Labeled Faces in the Wild",
        "disputed",
        "",
        "13,233 press photographs of 5,749 people from 2002 to 2004, under their full names. It"
        " was not withdrawn, but nobody in it was asked, and the study named here counts it "
        "among the problematic ones.",
        ("Huang et al. 2007, Labeled Faces in the Wild", PENG),
        picture=r"(?P<who>[A-Z][^/\d]*)/(?P=who)_\d{4}\.\w+",
        marker="lfw([-_](deepfunneled|funneled|a))?",
    ),
)


@dataclass(slots=True)
class Layout:
    """Compares what a dataset's files are called with what is known."""

    pictures: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    markers: dict[str, set[str]] = field(default_factory=dict)

    _FORMS = tuple(
        (known.name, re.compile(f"(?:.*/)?{known.picture}")) for known in KNOWN if known.picture
    )
    _MARKERS = tuple((known.name, re.compile(known.marker)) for known in KNOWN if known.marker)

    def picture(self, path: str) -> None:
        """Takes the path of one picture."""
        self.pictures += 1
        self.counts.update(name for name, form in self._FORMS if form.fullmatch(path))
        self.names(path.split("/")[:-1])

    def names(self, names: Iterable[str]) -> None:
        """Takes names of folders, or of files that are no pictures."""
        for part in names:
            for name, form in self._MARKERS:
                if form.fullmatch(part):
                    self.markers.setdefault(name, set()).add(part)

    def recognised(self, reader: str = "", classes: int | None = None) -> list[dict[str, Any]]:
        """Known datasets that this one is laid out like, with the evidence.

        Args:
            reader: format that the pictures were read by.
            classes: people that a RecordIO `property` file tells of.
        """
        rows = []
        for known in KNOWN:
            evidence = self._evidence(known, reader, classes)
            if evidence:
                rows.append(
                    {
                        "name": known.name,
                        "status": known.status,
                        "when": known.when,
                        "story": known.story,
                        "sources": list(known.sources),
                        "evidence": evidence,
                    }
                )
        return rows

    def _evidence(self, known: Known, reader: str, classes: int | None) -> list[str]:
        found = []
        count = self.counts[known.name]
        if count >= LEAST and count >= SHARE * self.pictures:
            found.append(f"{count} of {self.pictures} pictures are named as in it")
        markers = sorted(self.markers.get(known.name, ()))[:LEAST]
        found += [f"there is a {marker}" for marker in markers]
        if classes in known.classes:
            found.append(f"its property file tells of {classes} people")
        if known.reader and known.reader == reader:
            found.append("it has the tables of this dataset's own format")
        return found
