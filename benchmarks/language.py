"""Language identification of alt-text: which identifier `filter.language` should use by default.

    python benchmarks/language.py            # about 2 minutes on one core
    python benchmarks/language.py --write    # and puts the page into language.md beside this file

Written down before the first run:

- Texts: `language_texts.tsv`, 40 captions in each of 13 languages, by hand, in the style of alt-text (ours, Apache-2.0); and
  340 rows of a LAION list (`alttext/laion_10000.parquet`, found through VLPIPE_DATA or at ../shared/data), drawn with
  `random.Random(12).sample(range(10000), 340)`. `language_alttext.tsv` has their row numbers and the language by hand, given
  before any identifier ran: that of most of the common words; `mul`: no majority; `zxx`: only names, numbers, codes, or a
  file name. These two are left out of the recall.
- Halves: even lines (rows) to choose margins, odd lines (rows) for the figures. Line numbers count from 0.
- A default has, on the odd half, a recall of English of at least 0.95 on the alt-texts and a mean recall of the 12 other
  languages of at least 0.90. Among those that do, it is the one that needs the lightest package; among equals, the one with
  the better precision of English on the captions.
"""
