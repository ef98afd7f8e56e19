"""How many workers the user asked for since a job was submitted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("wish", sa.Integer))


def downgrade() -> None:
    op.drop_column("jobs", "wish")
