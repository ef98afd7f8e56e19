"""The hardware class of a job's first attempt, which its later ones keep."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

jobs = sa.table("jobs", sa.column("id", sa.Text), sa.column("plan", sa.JSON), sa.column("hardware_class", sa.Text))


def upgrade() -> None:
    op.add_column("jobs", sa.Column("hardware_class", sa.Text))
    connection = op.get_bind()
    for job_id, plan in connection.execute(sa.select(jobs.c.id, jobs.c.plan)).all():
        if plan:  # of its latest attempt: no earlier one is known
            change = jobs.update().where(jobs.c.id == job_id).values(hardware_class=plan["hardware_class"])
            connection.execute(change)


def downgrade() -> None:
    op.drop_column("jobs", "hardware_class")
