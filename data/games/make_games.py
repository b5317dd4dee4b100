"""Makes chess games with Stockfish: the text file that `rules2ranks.tasks.chess` reads, and a record of its making.

    python data/games/make_games.py --games 3000 --seed 0

The engine searches to one fixed depth per game, and each move is drawn among its best few that are nearly as good as
the best one, so that games differ. The same seed, engine build and settings give the same games: one thread, a fixed
depth and a table emptied before each game leave nothing to the clock. Needs Stockfish on the path and the extra
``chess``; python-chess is GPL-3.0-or-later, and a script that imports it is bound by that licence when it is passed on.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path

import chess
import chess.engine
import numpy as np
from tqdm import tqdm

OPENINGS = {
    "Alekhine Defence": "e4 Nf6 e5 Nd5 d4 d6",
    "Benko Gambit": "d4 Nf6 c4 c5 d5 b5",
    "Bird Opening": "f4 d5 Nf3 Nf6",
    "Bogo-Indian Defence": "d4 Nf6 c4 e6 Nf3 Bb4+",
    "Caro-Kann Defence, Advance": "e4 c6 d4 d5 e5 Bf5",
    "Caro-Kann Defence, Classical": "e4 c6 d4 d5 Nc3 dxe4 Nxe4 Bf5",
    "Catalan Opening": "d4 Nf6 c4 e6 g3 d5 Bg2",
    "Dutch Defence": "d4 f5 g3 Nf6 Bg2",
    "English Opening, Four Knights": "c4 e5 Nc3 Nf6 Nf3 Nc6",
    "English Opening, Symmetrical": "c4 c5 Nc3 Nc6 g3 g6",
    "Four Knights Game": "e4 e5 Nf3 Nc6 Nc3 Nf6",
    "French Defence, Exchange": "e4 e6 d4 d5 exd5 exd5",
    "French Defence, Winawer": "e4 e6 d4 d5 Nc3 Bb4",
    "Giuoco Piano": "e4 e5 Nf3 Nc6 Bc4 Bc5",
    "Grünfeld Defence": "d4 Nf6 c4 g6 Nc3 d5",
    "Italian Game, Two Knights": "e4 e5 Nf3 Nc6 Bc4 Nf6",
    "King's Gambit Accepted": "e4 e5 f4 exf4 Nf3",
    "King's Indian Attack": "Nf3 d5 g3 Nf6 Bg2",
    "King's Indian Defence": "d4 Nf6 c4 g6 Nc3 Bg7 e4 d6",
    "London System": "d4 d5 Nf3 Nf6 Bf4",
    "Modern Benoni": "d4 Nf6 c4 c5 d5 e6",
    "Nimzo-Indian Defence": "d4 Nf6 c4 e6 Nc3 Bb4",
    "Petrov Defence": "e4 e5 Nf3 Nf6",
    "Philidor Defence": "e4 e5 Nf3 d6 d4",
    "Pirc Defence": "e4 d6 d4 Nf6 Nc3 g6",
    "Queen's Gambit Accepted": "d4 d5 c4 dxc4 Nf3 Nf6",
    "Queen's Gambit Declined": "d4 d5 c4 e6 Nc3 Nf6",
    "Queen's Indian Defence": "d4 Nf6 c4 e6 Nf3 b6",
    "Réti Opening": "Nf3 d5 c4",
    "Ruy Lopez, Berlin": "e4 e5 Nf3 Nc6 Bb5 Nf6",
    "Ruy Lopez, Morphy": "e4 e5 Nf3 Nc6 Bb5 a6 Ba4 Nf6",
    "Scandinavian Defence": "e4 d5 exd5 Qxd5 Nc3 Qa5",
    "Scotch Game": "e4 e5 Nf3 Nc6 d4 exd4 Nxd4",
    "Sicilian Defence, Alapin": "e4 c5 c3",
    "Sicilian Defence, Closed": "e4 c5 Nc3 Nc6 g3",
    "Sicilian Defence, Najdorf": "e4 c5 Nf3 d6 d4 cxd4 Nxd4 Nf6 Nc3 a6",
    "Sicilian Defence, Sveshnikov": "e4 c5 Nf3 Nc6 d4 cxd4 Nxd4 Nf6 Nc3 e5",
    "Slav Defence": "d4 d5 c4 c6 Nf3 Nf6",
    "Vienna Game": "e4 e5 Nc3 Nf6",
}
DEPTHS = (1, 2, 3, 4)
BEST = 3
WITHIN = 50
"""Centipawns: a move this much worse than the best one is still drawn."""
PLIES = 120
OPTIONS = {"Threads": 1, "Hash": 16}
MATE = 100_000
"""Centipawns that a mate counts, less one per move until then."""


def play(engine: chess.engine.SimpleEngine, rng: np.random.Generator) -> tuple[list[str], str]:
    """One game from a drawn opening: its moves in SAN, and the result (`*` if it was cut off)."""
    board, moves = chess.Board(), str(rng.choice(list(OPENINGS.values()))).split()
    limit = chess.engine.Limit(depth=int(rng.choice(DEPTHS)))
    for move in moves:
        board.push_san(move)
    # An object of its own for each game makes python-chess send `ucinewgame`, which empties the engine's table.
    game = object()
    wanted = chess.engine.INFO_SCORE | chess.engine.INFO_PV
    while (result := ended(board)) == "*" and len(moves) < PLIES:
        lines = engine.analyse(board, limit, multipv=BEST, game=game, info=wanted)
        scores = [line["score"].relative.score(mate_score=MATE) for line in lines]
        good = [line["pv"][0] for line, score in zip(lines, scores, strict=True) if score >= max(scores) - WITHIN]
        moves.append(board.san_and_push(good[rng.integers(len(good))]))
    return moves, result


def ended(board: chess.Board) -> str:
    """The result by the rules, with a draw at the third repetition or after fifty moves; `*` while the game goes on."""
    if outcome := board.outcome():
        return outcome.result()
    return "1/2-1/2" if board.is_repetition(3) or board.is_fifty_moves() else "*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=3000, help="how many different games")
    parser.add_argument("--seed", type=int, default=0, help="games depend on nothing else but engine and settings")
    parser.add_argument("--engine", default="stockfish", help="command that starts a UCI engine")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("stockfish.txt"), help="the text file")
    args = parser.parse_args()
    if args.games < 1 or args.seed < 0:
        parser.error(f"at least one game and a seed of 0 or more are needed, got {args.games} and {args.seed}")

    texts: dict[str, None] = {}
    results: Counter[str] = Counter()
    begun = time.perf_counter()
    played = 0
    with chess.engine.SimpleEngine.popen_uci(args.engine) as engine, tqdm(total=args.games, unit="game") as progress:
        engine.configure(OPTIONS)
        name = engine.id["name"]
        network = engine.options["EvalFile"].default if "EvalFile" in engine.options else None
        while len(texts) < args.games:
            rng = np.random.Generator(np.random.Philox(key=np.array([args.seed, played], dtype=np.uint64)))
            played += 1
            moves, result = play(engine, rng)
            text = " ".join(moves)
            if text not in texts:
                texts[text] = None
                results[result] += 1
                progress.update()

    content = "".join(f"{text}\n" for text in texts).encode()
    args.out.write_bytes(content)
    plies = [len(text.split()) for text in texts]
    record = {
        "engine": name,
        "network": network,
        "python_chess": chess.__version__,
        "options": OPTIONS,
        "depths": DEPTHS,
        "best_moves": BEST,
        "within_centipawns": WITHIN,
        "most_plies": PLIES,
        "openings": OPENINGS,
        "seed": args.seed,
        "games": len(texts),
        "duplicates_dropped": played - len(texts),
        "results": dict(sorted(results.items())),
        "plies": {"all": sum(plies), "shortest": min(plies), "longest": max(plies)},
        "seconds": round(time.perf_counter() - begun),
        "sha256": hashlib.sha256(content).hexdigest(),
        "command": " ".join(["python data/games/make_games.py", *sys.argv[1:]]),
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
