"""Titles of songs from names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqvae.music.titles import title


@pytest.mark.parametrize(
    "names",
    [
        ("all-blues-Miles-Davis-dz.mid", "all-blues-miles-davis-bl.mid", "AllBlues.mid"),
        ("take-5-jh.mid", "take-five-Dave-Brubeck-lf.mid", "take-five-paul-desmond-devian.mid"),
        ("MyWay.mid", "my-way-bz3.mid"),
        ("unforgetable-js.mid", "unforgettable-bz2.mid", "Unforgettable.mid"),
        ("broadway-dmck.mid", "broadway2-Woode-McRae-Byrd-dm.mid"),
        ("masquerade-dz.mid", "this-masquerade-dz.mid"),
        ("a-foggy-day-r-gw.mid", "FoggyDay.MID"),
        ("midi-classical-1812-overture-Tchaikovsky-rcg.mid", "midi-classical-1812-overture-gr.mid"),
        ("Piano-Sonatas-11-3-midi-score.mid", "2ce559-Piano-Sonatas-11-1-midi-score.mid"),
        ("Piano-Sonatas-24-1-no-2-repeat-midi-score.mid", "Piano-Sonatas-24-2-midi-score.mid"),
        ("Prelude-bwv-857-midi-score.mid", "Fugue-bwv-857-midi-score.mid"),
        ("Haydn-Joseph-String-Quartet-in-C-major-Hob.III32-Op.20-No.2-sq8088531.mxl", "kern-op20n2-01.krn"),
        ("art-String-Quartet-No.15-in-D-minor-K.421417b-Op.-10-No.-2-sq7294793.mxl", "kern-k421-03.krn"),
        ("Symphony-No.3-Op.90-1-Brahms-Op.90-1.mxl", "Symphony-No.3-Op.90-4-Brahms-Op.90-4.mxl"),
        ("rock/chart00-8beat.mid", "hymn/chart00-hymn.mid"),
        ("corpus:bach/bwv66.6", "bwv66.6.mxl"),
        ("The Beatles - Help.mid", "Help.kar", "03 - The Beatles - Help!.mid", "The_Beatles_-_Help.rmi"),
        ("Beatles - 07 - Help - Live.mid", "help-beatles.mid", "Help - Karaoke Version.smf", "Ann \u2013 Help.mid"),
        ("Beethoven - Symphony No 5 - Allegro.mid", "Beethoven - Symphony No 5 - Andante.mid", "Symphony 5.mid"),
        ("Sonata No 3 - Allegro.mid", "Sonata No 3 - Presto.mid"),
        ("Bach - BWV 857 - Prelude.mid", "Fugue-bwv-857-midi-score.mid"),
    ],
)
def test_files_of_one_song_share_a_title(names: tuple[str, ...]) -> None:
    assert len({title(name) for name in names}) == 1
    assert title(Path(names[0])) == title(names[0])


@pytest.mark.parametrize(
    "names",
    [
        ("jigs104.mid", "jigs105.mid", "jigs10.mid"),
        ("reelsa-c1.mid", "reelsa-c12.mid", "reelsd-g1.mid"),
        ("001.mid", "002.mid", "010.mid"),
        ("kern-chor001.krn", "kern-chor010.krn"),
        ("kern-k155-01.krn", "kern-k156-01.krn"),
        ("kern-op20n2-01.krn", "kern-op20n3-01.krn", "kern-op2n3-01.krn"),
        ("d-e1m1.mid", "d-e1m2.mid", "d-map01.mid", "d-map11.mid", "d-read-m.mid"),
        ("Piano-Sonatas-11-1-midi-score.mid", "Piano-Sonatas-12-1-midi-score.mid", "Keyboard-Sonatas-11-1.mid"),
        ("Yesterday.mid", "Michelle.mid", "If.mid", "The.mid"),
        ("The Beatles - Help.mid", "The Beatles - Michelle.mid", "Queen - If.mid", "Prince - 1999.mid"),
        ("\u5468\u6770\u4f26 - \u6674\u5929.mid", "\u5468\u6770\u4f26 - \u4e03\u91cc\u9999.mid"),
    ],
)
def test_different_songs_have_different_titles(names: tuple[str, ...]) -> None:
    assert len({title(name) for name in names}) == len(names)
    assert all(title(name) for name in names)
