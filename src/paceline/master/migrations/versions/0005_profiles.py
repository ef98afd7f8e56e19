"""What was learned of kinds of jobs: a profile for each hardware class and kind of device."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "profiles",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("hardware_class", sa.Text, primary_key=True),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("profile", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("profiles")
